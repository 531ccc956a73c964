"""Control sets of the same size as the searched one: does the choice of modules matter at all?"""

from __future__ import annotations

import random
from typing import Literal, get_args

from securetune.artifacts import ModuleRobustness, RobustModules, RobustnessReport
from securetune.errors import ArtifactError
from securetune.models import check_same_model
from securetune.search.joint_test import JointTest
from securetune.search.ranking import (
    Unit,
    parameter_fraction,
    rank_modules,
    selected_modules,
    sensitivities,
    whole_parameters,
)

ControlKind = Literal["sensitive", "random", "top-k", "pattern"]
CONTROL_KINDS: tuple[ControlKind, ...] = get_args(ControlKind)


def control_set(
    report: RobustnessReport,
    manifest: RobustModules,
    kind: ControlKind,
    seed: int = 0,
    test: JointTest | None = None,
) -> RobustModules:
    """Choose as many parameters as the manifest holds, but by another rule.

    Modules are taken in the control's order; one is left out if the share of the parameters would be further from the
    manifest's with it than without it. Modules that share a parameter are taken together.

    Args:
        report: The analysis behind the manifest.
        manifest: The searched set.
        kind: `sensitive`: the least robust modules. `random`: modules in random order. `top-k`: the most robust ones,
            not tested jointly. `pattern`: the deepest layers' modules, Q and K last of all. All but the first may
            overlap the manifest.
        seed: Of the random order.
        test: Measures the control's joint accuracy at the manifest's noise size; without it that figure is None.

    Raises:
        ArtifactError: If the report and the manifest belong to different models or prompts.
    """
    check_same_model(report.model, manifest.model, "the analysis")
    if report.prompt_set_hash != manifest.prompt_set_hash:
        raise ArtifactError("the analysis and the manifest were made with different probe prompts. Search again.")
    ranked = rank_modules(report, manifest.settings.get("order_by"))
    names = _nearest_share(report, _order(kind, ranked, seed), manifest.parameter_fraction)
    extra = {"control_seed": seed} if kind == "random" else {}
    return RobustModules(
        model=manifest.model,
        prompt_set_hash=manifest.prompt_set_hash,
        selection=kind,
        settings={**manifest.settings, **extra},
        modules=selected_modules(report, ranked, names),
        parameter_fraction=parameter_fraction(report, names),
        joint_accuracy=None if test is None else test.accuracy(names, manifest.settings["epsilon"]),
        intact_accuracy=manifest.intact_accuracy,
        sensitivities=sensitivities(report),
    )


def _order(kind: ControlKind, ranked: list[ModuleRobustness], seed: int) -> list[Unit]:
    match kind:
        case "sensitive":
            return whole_parameters(ranked)[::-1]
        case "random":
            units = whole_parameters(ranked)
            return random.Random(seed).sample(units, len(units))
        case "top-k":
            return whole_parameters(ranked)
        case "pattern":
            return whole_parameters(sorted(ranked, key=lambda module: (module.type in ("Q", "K"), -module.layer)))


def _nearest_share(report: RobustnessReport, order: list[Unit], target: float) -> list[str]:
    chosen: list[str] = []
    for unit in order:
        now, then = parameter_fraction(report, chosen), parameter_fraction(report, [*chosen, *unit])
        if abs(then - target) < abs(now - target):
            chosen += unit
    smallest: Unit = min(order, key=lambda unit: parameter_fraction(report, unit))
    return chosen or list(smallest)
