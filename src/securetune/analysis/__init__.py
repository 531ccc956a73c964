"""Robustness of each module's security features, sampled and in closed form."""

from securetune.analysis.closed_form import closed_form_shifts
from securetune.analysis.robustness import analyze_robustness
from securetune.analysis.sweep import SweepLogits, sweep_modules

__all__ = ["SweepLogits", "analyze_robustness", "closed_form_shifts", "sweep_modules"]
