"""The order in which modules become candidates: the most robust first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from securetune.artifacts import ModuleRobustness, RobustnessReport, SelectedModule

_SENSITIVE_TYPES = ("Q", "K")


def rank_modules(
    report: RobustnessReport, order_by: Literal["accuracy", "closed-form"] = "accuracy"
) -> list[ModuleRobustness]:
    """Order modules from the most to the least robust.

    By accuracy under perturbation, then by how little the margin falls; what still ties goes by the paper's patterns:
    deeper layers first, Q and K last.

    Args:
        report: The analysis.
        order_by: `accuracy`, the paper's score, or `closed-form`: by how little the logit shifts to first order.
    """
    if order_by == "closed-form":
        return sorted(report.modules, key=lambda module: (module.closed_form_shift, *_pattern(module)))
    return sorted(report.modules, key=lambda module: (-module.accuracy, module.margin_fall, *_pattern(module)))


def _pattern(module: ModuleRobustness) -> tuple[int, bool]:
    return (-module.layer, module.type in _SENSITIVE_TYPES)


def parameter_fraction(report: RobustnessReport, names: Collection[str]) -> float:
    """Return the share of all projection parameters that the named modules hold."""
    total = sum(module.parameter_count for module in report.modules)
    return sum(module.parameter_count for module in report.modules if module.name in names) / total


def selected_modules(
    report: RobustnessReport, ranked: Sequence[ModuleRobustness], names: Collection[str]
) -> list[SelectedModule]:
    """Describe the named modules for a manifest, in the model's own order."""
    ranks = {module.name: rank for rank, module in enumerate(ranked)}
    return [
        SelectedModule(
            name=module.name,
            type=module.type,
            layer=module.layer,
            parameter_count=module.parameter_count,
            robustness_rank=ranks[module.name],
        )
        for module in report.modules
        if module.name in names
    ]
