"""The order in which modules become candidates: the most robust first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence

from securetune.artifacts import ModuleRobustness, RobustnessReport, SelectedModule, parameter_path
from securetune.config import OrderBy, SearchSettings
from securetune.errors import ArtifactError

_SENSITIVE_TYPES = ("Q", "K")


def default_order(report: RobustnessReport) -> OrderBy:
    """Return the score that orders candidates if none is asked for; `SearchSettings.order_by` says why."""
    by_updates = report.settings.get("perturbation") == "update"
    has_margin = all(module.refusal_margin_fall is not None for module in report.modules)
    return "refusal-margin" if by_updates and has_margin else "accuracy"


def rank_modules(report: RobustnessReport, order_by: OrderBy | None = None) -> list[ModuleRobustness]:
    """Order modules from the most to the least robust.

    What ties goes by the paper's patterns: deeper layers first, Q and K last.

    Args:
        report: The analysis.
        order_by: `accuracy` under perturbation, the paper's score, then how little the margin falls; `margin`: the fall
            of the classifier's logit alone; `closed-form`: how little that logit shifts to first order;
            `refusal-margin` and `refusal-closed-form`: the same two for the refusal margin. None: what `default_order`
            says.

    Raises:
        ArtifactError: If the analysis has no such score.
    """
    order_by = order_by or default_order(report)
    lacking = [module.name for module in report.modules if None in _score(module, order_by)]
    if lacking:
        raise ArtifactError(
            f"search.order_by: {order_by} needs a score that the analysis does not hold ({_WHY_LACKING[order_by]}). "
            'Use "accuracy", or analyze again.'
        )
    return sorted(report.modules, key=lambda module: (*_score(module, order_by), *_pattern(module)))


_WHY_LACKING = {
    "accuracy": "every analysis has it",
    "margin": "every analysis has it",
    "closed-form": "its perturbation has no closed form",
    "refusal-margin": "the refusal margin was not defined for this model",
    "refusal-closed-form": "the refusal margin was not defined, or the perturbation has no closed form",
}


def _score(module: ModuleRobustness, order_by: OrderBy) -> tuple[float | None, ...]:
    """Return what a module is ordered by, the smaller the more robust."""
    match order_by:
        case "accuracy":
            return (-module.accuracy, module.margin_fall)
        case "margin":
            return (module.margin_fall,)
        case "closed-form":
            return (module.closed_form_shift,)
        case "refusal-margin":
            return (module.refusal_margin_fall,)
        case "refusal-closed-form":
            return (module.refusal_closed_form_shift,)


Unit = tuple[str, ...]
"""Names of modules that join or are refused together."""


def make_units(ranked: Sequence[ModuleRobustness], settings: SearchSettings) -> list[Unit]:
    """Group ranked modules into the units of the search, the most robust first.

    Modules that share a parameter are one unit, since a part of a parameter cannot be trained apart. A unit is as
    robust as its members' mean rank says: scores of modules of different width do not add up.
    """
    if settings.unit == "module":
        return whole_parameters(ranked)
    sharing: dict[str, set[str]] = defaultdict(set)
    for module in ranked:
        sharing[parameter_path(module.name)].add(module.type)
    return _grouped(
        ranked,
        lambda module: (frozenset(sharing[parameter_path(module.name)]), module.layer // settings.block_layers),
    )


def whole_parameters(modules: Sequence[ModuleRobustness]) -> list[Unit]:
    """Group modules that share a parameter; the groups keep the order of their members' mean places."""
    return _grouped(modules, lambda module: parameter_path(module.name))


def _grouped(modules: Sequence[ModuleRobustness], key: Callable[[ModuleRobustness], Hashable]) -> list[Unit]:
    places: dict[Hashable, list[tuple[int, str]]] = defaultdict(list)
    for place, module in enumerate(modules):
        places[key(module)].append((place, module.name))
    by_mean = sorted(places.values(), key=lambda members: sum(place for place, _ in members) / len(members))
    return [tuple(name for _, name in members) for members in by_mean]


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


def sensitivities(report: RobustnessReport) -> dict[str, float]:
    """Return how far each module shifts the classifier's logit: to first order, or as sampled if that is not known."""
    return {
        module.name: module.sampled_shift if module.closed_form_shift is None else module.closed_form_shift
        for module in report.modules
    }
