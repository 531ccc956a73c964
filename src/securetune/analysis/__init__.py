"""Robustness of each module's security features, sampled and in closed form."""

from securetune.analysis.module_pass import Execution
from securetune.analysis.partial_results import remove_partial_results
from securetune.analysis.robustness import analyze_robustness, make_perturbation
from securetune.analysis.sweep import LayerDrift, SweepLogits, SweepResult, sweep_modules
from securetune.features.closed_form import closed_form_shifts, directional_shifts

__all__ = [
    "Execution",
    "LayerDrift",
    "SweepLogits",
    "SweepResult",
    "analyze_robustness",
    "closed_form_shifts",
    "directional_shifts",
    "make_perturbation",
    "remove_partial_results",
    "sweep_modules",
]
