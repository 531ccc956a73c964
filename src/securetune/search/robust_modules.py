"""The search for a large set of modules that is robust jointly.

Source: arXiv 2410.04524, a heuristic search guided by the classifier. Its pattern C, that individually robust modules
can be jointly sensitive, is why the whole set is perturbed anew at every step. The chunks, the halving and the stopping
rule are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from securetune.artifacts import ModuleRobustness, RobustModules, RobustnessReport
from securetune.config import SearchSettings
from securetune.data.prompts import ProbeSet
from securetune.errors import ArtifactError, RunError
from securetune.features.perturbation import Perturbation
from securetune.features.probe import fit_probe
from securetune.models import ChatModel, check_same_model
from securetune.search.joint_noise import JointNoise, choose_joint_epsilon
from securetune.search.joint_test import JointTest
from securetune.search.ranking import (
    Unit,
    default_order,
    make_units,
    parameter_fraction,
    rank_modules,
    selected_modules,
    sensitivities,
)

TraceStep = dict[str, Any]


class SearchResult(NamedTuple):
    """What the search found and how.

    Attributes:
        manifest: The chosen set.
        trace: One entry a joint test: `step` (from 0), `candidates` (the modules asked about), `set_size` and
            `parameter_fraction` (of the set with them), `accuracy` (under joint perturbation), `required_accuracy`, and
            `decision`: `joined`, `halved` or `skipped`; `predicted_accuracy` of the closed form where there is one, and
            `accuracy` None where that prediction alone refused the chunk.
    """

    manifest: RobustModules
    trace: list[TraceStep]


def search_robust_modules(
    model: ChatModel,
    probes: ProbeSet,
    report: RobustnessReport,
    settings: SearchSettings,
    on_step: Callable[[TraceStep], None] | None = None,
    perturbation: Perturbation | None = None,
) -> SearchResult:
    """Choose modules in order of robustness, as long as the classifier stands their joint perturbation.

    Candidates come in chunks of `chunk_size`. A chunk joins if the accuracy on harmful prompts, with everything chosen
    so far and the chunk perturbed together, is at most `tolerance` below the intact model's. A refused chunk is halved,
    down to one module, which is then skipped. The search ends at `target_fraction` of the parameters, or without
    candidates.

    Args:
        model: The model that was analyzed. Its weights are perturbed in place and restored bit for bit.
        probes: The prompts that it was analyzed with.
        report: The analysis.
        settings: Target share, tolerance, noise.
        on_step: Called with each entry of the trace as it is made.
        perturbation: Of the joint test; None: Gaussian noise.

    Raises:
        ArtifactError: If the report was made for another model, chat template or set of prompts.
        RunError: If not one module passes.
    """
    check_report(report, model, probes)
    settings = settings.model_copy(update={"order_by": settings.order_by or default_order(report)})
    ranked = rank_modules(report, settings.order_by)
    probe = fit_probe(model, probes, settings.batch_size)
    test = JointTest(model, probes.score_harmful, probe.classifier, settings, perturbation)
    noise = _joint_noise(test, report, settings)
    trace: list[TraceStep] = []
    chosen: list[str] = []
    accuracy = test.intact_accuracy
    for step, joined in _steps(test, report, ranked, settings, noise.epsilon):
        trace.append(step)
        if on_step is not None:
            on_step(step)
        if joined:
            chosen += step["candidates"]
            accuracy = step["accuracy"]
    if not chosen:
        raise RunError(
            f"the search found no robust module: perturbing any single one by {noise.epsilon:.3g} costs more than the "
            f"tolerance of {settings.tolerance:g}. Raise search.tolerance or lower search.epsilon."
        )
    manifest = RobustModules(
        model=model.identity,
        prompt_set_hash=probes.hash,
        selection="searched",
        settings=_resolved(settings, noise),
        modules=selected_modules(report, ranked, chosen),
        parameter_fraction=parameter_fraction(report, chosen),
        joint_accuracy=accuracy,
        intact_accuracy=test.intact_accuracy,
        sensitivities=sensitivities(report),
    )
    return SearchResult(manifest, trace)


def check_report(report: RobustnessReport, model: ChatModel, probes: ProbeSet) -> None:
    """Refuse an analysis that does not belong to this model and these prompts.

    Raises:
        ArtifactError: If the model, its chat template or the prompts differ.
    """
    check_same_model(report.model, model.identity, "the analysis")
    if report.prompt_set_hash != probes.hash:
        raise ArtifactError(
            f"the analysis was made with other probe prompts (hash {report.prompt_set_hash[:12]}) than those given "
            f"here (hash {probes.hash[:12]}). Give the same --harmful and --harmless files, max_prompts and seed."
        )


def _joint_noise(test: JointTest, report: RobustnessReport, settings: SearchSettings) -> JointNoise:
    if settings.epsilon is None:
        return choose_joint_epsilon(test, report, settings)
    return JointNoise(settings.epsilon, test.intact_accuracy, trials=[])


def _resolved(settings: SearchSettings, noise: JointNoise) -> dict[str, Any]:
    resolved = {**settings.model_dump(mode="json"), "epsilon": noise.epsilon}
    if settings.epsilon is None:
        resolved["epsilon_rule"] = "random sets of the target share fall by three times the tolerance"
        resolved["epsilon_aimed_accuracy"] = noise.aimed_accuracy
        resolved["epsilon_trials"] = noise.trials
    return resolved


def _steps(
    test: JointTest,
    report: RobustnessReport,
    ranked: Sequence[ModuleRobustness],
    settings: SearchSettings,
    epsilon: float,
) -> Iterator[tuple[TraceStep, bool]]:
    """Yield each joint test and whether its candidates joined."""
    units = make_units(ranked, settings)
    waiting = [units[start : start + settings.chunk_size] for start in range(0, len(units), settings.chunk_size)]
    required = test.intact_accuracy - settings.tolerance
    chosen: list[str] = []
    number = 0
    while waiting and parameter_fraction(report, chosen) < settings.target_fraction:
        chunk = _needed(report, chosen, waiting.pop(0), settings.target_fraction)
        names = [name for unit in chunk for name in unit]
        predicted = test.predicted_accuracy([*chosen, *names], epsilon)
        hopeless = predicted is not None and predicted < required - settings.tolerance
        accuracy = None if hopeless else test.accuracy([*chosen, *names], epsilon)
        joined = accuracy is not None and accuracy >= required
        step = {
            "step": number,
            "candidates": names,
            "set_size": len(chosen) + len(names),
            "parameter_fraction": parameter_fraction(report, [*chosen, *names]),
            "predicted_accuracy": predicted,
            "accuracy": accuracy,
            "required_accuracy": required,
            "decision": "joined" if joined else "halved" if len(chunk) > 1 else "skipped",
        }
        number += 1
        if joined:
            chosen += names
        elif len(chunk) > 1:
            middle = (len(chunk) + 1) // 2
            waiting[:0] = [chunk[:middle], chunk[middle:]]
        yield step, joined


def _needed(report: RobustnessReport, chosen: list[str], chunk: list[Unit], target: float) -> list[Unit]:
    """Cut a chunk off where the target is reached, so that the set exceeds it by less than one unit."""
    for count in range(1, len(chunk)):
        names = [name for unit in chunk[:count] for name in unit]
        if parameter_fraction(report, [*chosen, *names]) >= target:
            return chunk[:count]
    return chunk
