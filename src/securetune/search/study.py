"""How far the searched set depends on what was chosen for the search, and what simpler rules would have chosen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any

from securetune.artifacts import (
    ComparedSet,
    RobustModules,
    RobustnessReport,
    SearchStudy,
    SearchVariant,
)
from securetune.config import SearchSettings
from securetune.data.prompts import ProbeSet
from securetune.errors import RunError
from securetune.features.perturbation import Perturbation
from securetune.features.probe import fit_probe
from securetune.models import ChatModel
from securetune.progress import ProgressCallback, silent
from securetune.search.controls import CONTROL_KINDS, control_set
from securetune.search.joint_test import JointTest
from securetune.search.robust_modules import search_robust_modules

TOLERANCE_FACTORS = (0.5, 2.0)
TARGET_FRACTIONS = (0.25, 0.75)
SEEDS = 3
_SEED_DISTANCE = 100


def study_search(
    model: ChatModel,
    probes: ProbeSet,
    report: RobustnessReport,
    manifest: RobustModules,
    settings: SearchSettings,
    progress: ProgressCallback | None = None,
    perturbation: Perturbation | None = None,
) -> SearchStudy:
    """Search again with other seeds, tolerances and targets, and test the sets of simpler rules.

    The noise size is the manifest's throughout, so that accuracies can be compared.

    Args:
        model: The model that was analyzed.
        probes: The prompts that it was analyzed with.
        report: The analysis.
        manifest: The searched set.
        settings: The settings that it was searched with.
        progress: Told of the searches done.
        perturbation: Of the joint test; None: Gaussian noise.
    """
    same = settings.model_copy(update={"epsilon": manifest.settings["epsilon"]})
    seeds = [{"seed": settings.seed + _SEED_DISTANCE * number} for number in range(1, SEEDS + 1)]
    tolerances = [{"tolerance": min(1.0, factor * settings.tolerance)} for factor in TOLERANCE_FACTORS]
    targets = [{"target_fraction": target} for target in TARGET_FRACTIONS if target != settings.target_fraction]
    chosen = {module.name for module in manifest.modules}
    found: list[SearchVariant] = []
    changes: list[dict[str, Any]] = [*seeds, *tolerances, *targets]
    for number, change in enumerate(changes, start=1):
        found.append(_variant(model, probes, report, same.model_copy(update=change), chosen, perturbation))
        (progress or silent)("searching again with other settings", number, len(changes))
    by_seed, others = found[: len(seeds)], found[len(seeds) :]
    probe = fit_probe(model, probes, settings.batch_size)
    test = JointTest(model, probes.score_harmful, probe.classifier, same, perturbation)
    return SearchStudy(
        model=model.identity,
        prompt_set_hash=probes.hash,
        settings=manifest.settings,
        required_accuracy=manifest.intact_accuracy - settings.tolerance,
        seeds=by_seed,
        mean_jaccard_over_seeds=_mean_jaccard([chosen, *(set(variant.modules) for variant in by_seed)]),
        tolerances=others[: len(tolerances)],
        target_fractions=others[len(tolerances) :],
        other_rules=[_compared(control_set(report, manifest, kind, same.seed, test), chosen) for kind in CONTROL_KINDS],
    )


def jaccard(first: Collection[str], second: Collection[str]) -> float:
    """Return the share of the modules in either set that are in both, in [0, 1]; 1 for two empty sets."""
    either = set(first) | set(second)
    return len(set(first) & set(second)) / len(either) if either else 1.0


def _variant(
    model: ChatModel,
    probes: ProbeSet,
    report: RobustnessReport,
    settings: SearchSettings,
    chosen: Collection[str],
    perturbation: Perturbation | None,
) -> SearchVariant:
    names: list[str] = []
    fraction, accuracy = 0.0, None
    try:
        other = search_robust_modules(model, probes, report, settings, perturbation=perturbation).manifest
        names = [module.name for module in other.modules]
        fraction, accuracy = other.parameter_fraction, other.joint_accuracy
    except RunError:  # no module passes: an empty set is the answer here
        pass
    return SearchVariant(
        tolerance=settings.tolerance,
        target_fraction=settings.target_fraction,
        seed=settings.seed,
        modules=names,
        parameter_fraction=fraction,
        joint_accuracy=accuracy,
        jaccard=jaccard(names, chosen),
    )


def _compared(other: RobustModules, chosen: Collection[str]) -> ComparedSet:
    return ComparedSet(
        selection=other.selection,
        parameter_fraction=other.parameter_fraction,
        joint_accuracy=other.joint_accuracy,
        jaccard=jaccard([module.name for module in other.modules], chosen),
    )


def _mean_jaccard(sets: Sequence[Collection[str]]) -> float:
    overlaps = [jaccard(first, second) for first, second in combinations(sets, 2)]
    return sum(overlaps) / len(overlaps)
