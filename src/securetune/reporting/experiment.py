"""What an experiment showed: every point, the frontier of each method, and the methods at matched settings.

Settings are chosen on the selection prompts alone; what is compared then are the reported prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from securetune.artifacts import (
    Comparison,
    EvaluationSource,
    Experiment,
    ExperimentPoint,
    MatchedBy,
    MatchedComparison,
    MethodComparison,
    Metric,
    ModelComparison,
    Scores,
    read_artifact,
)
from securetune.config import ExperimentConfig, MatchingSettings, Point
from securetune.errors import ArtifactError
from securetune.reporting.compare import compare
from securetune.reporting.compare_models import compare_evaluations, correct
from securetune.reporting.run_results import START, EvaluatedModel, RunResults, read_run

_SELECTION = "selection"
_SCORES = "scores.json"
_CHANGED = "the weights were changed after the training whose loss is known"
_OTHER_DATA = "it was trained on other data than the reference, and the losses do not compare"
_HEADLINES: tuple[Metric, ...] = ("attack_success_rate", "over_refusal_rate", "task_accuracy")


def summarize_experiment(config: ExperimentConfig, folder: Path) -> Experiment:
    """Put together what is complete so far.

    Args:
        config: The experiment.
        folder: The run folder in which it was done.

    Raises:
        ArtifactError: If the folder holds no run, or its start model was not evaluated.
    """
    run = read_run(folder)
    if run.start is None or run.record is None:
        raise ArtifactError(f"{folder}: holds no evaluated start model yet. Run the experiment first.")
    reported, selected = compare(run), _compare_selection(run)
    points = _with_frontier([_point(point, run, reported, selected, config.run.seeds) for point in config.points])
    matched = _matched(points, config, folder) if _can_choose(points) else []
    return Experiment(
        config_hash=run.record.config_hash,
        model=run.start.scores.model.name,
        weights_fingerprint=run.start.scores.model.weights_fingerprint,
        reference=config.matching.reference,
        start_asr=reported.methods[START].asr,
        points=points,
        matched=matched,
        notes=_notes(points),
        seconds=run.record.seconds,
        environment=run.record.environment,
    )


def _compare_selection(run: RunResults) -> Comparison | None:
    """Compare the same models on the selection prompts."""
    methods = {label: [_on_selection(model) for model in models] for label, models in run.methods.items()}
    complete = {label: [model for model in models if model] for label, models in methods.items()}
    found = {label: models for label, models in complete.items() if models}
    return compare(dataclasses.replace(run, start=None, methods=found)) if found else None


def _on_selection(model: EvaluatedModel) -> EvaluatedModel | None:
    folder = model.folder.parent / _SELECTION
    if not (folder / _SCORES).exists():
        return None
    return EvaluatedModel(folder, model.seed, read_artifact(folder / _SCORES, Scores), model.training)


def _point(
    point: Point, run: RunResults, reported: Comparison, selected: Comparison | None, seeds: Sequence[int]
) -> ExperimentPoint:
    found: MethodComparison | None = reported.methods.get(point.label)
    chosen = selected.methods.get(point.label) if selected else None
    models = run.methods.get(point.label, [])
    losses = [model.training.phases[-1].last_loss_nats_per_token for model in models if model.training]
    done = [model.seed for model in models if model.seed is not None]
    return ExperimentPoint(
        label=point.label,
        method=point.method,
        values=point.values,
        seeds=done,
        missing=[seed for seed in seeds if seed not in done],
        selection_asr=chosen.asr if chosen else None,
        selection_task_accuracy=chosen.task_accuracy if chosen else None,
        asr=found.asr if found else None,
        wrapped_asr=found.wrapped_asr if found else {},
        task_accuracy=found.task_accuracy if found else None,
        over_refusal=found.over_refusal if found else None,
        final_loss_nats_per_token=sum(losses) / len(losses) if losses else None,
    )


def _with_frontier(points: Sequence[ExperimentPoint]) -> list[ExperimentPoint]:
    return [point.model_copy(update={"on_frontier": _is_on_frontier(point, points)}) for point in points]


def _is_on_frontier(point: ExperimentPoint, points: Sequence[ExperimentPoint]) -> bool:
    """Tell whether no other point of the method is at least as good in both and better in one."""
    own = _both(point)
    if own is None:
        return False
    others = [_both(other) for other in points if other.method == point.method and other is not point]
    return not any(other and other[0] >= own[0] and other[1] <= own[1] and other != own for other in others)


def _both(point: ExperimentPoint) -> tuple[float, float] | None:
    """Return task accuracy and ASR, or None if one of them was not measured."""
    if point.task_accuracy is None or point.asr is None:
        return None
    return point.task_accuracy.mean, point.asr.mean


def _can_choose(points: Sequence[ExperimentPoint]) -> bool:
    """Matching needs the selection prompts wherever a method has several points."""
    return any(point.selection_task_accuracy is not None for point in points)


def _matched(points: Sequence[ExperimentPoint], config: ExperimentConfig, folder: Path) -> list[MatchedComparison]:
    complete = [point for point in points if not point.missing]
    reference = [point for point in complete if point.method == config.matching.reference]
    accuracies = [point.selection_task_accuracy.mean for point in reference if point.selection_task_accuracy]
    if not accuracies:
        return []
    target = config.matching.task_accuracy * max(accuracies)
    by_accuracy = _choose_by_accuracy(complete, config.methods, target)
    found = [_compare_chosen("task_accuracy", target, by_accuracy, config, folder)]
    anchor = next((point for point in complete if point.label == by_accuracy.get(config.matching.reference)), None)
    if anchor is not None and anchor.final_loss_nats_per_token is not None:
        loss = anchor.final_loss_nats_per_token
        trained = [point for point in complete if _why_no_loss(point.label, config) is None]
        by_loss = _choose_by_loss(trained, config.methods, loss, config.matching)
        found.append(_compare_chosen("training_loss", loss, by_loss, config, folder))
    return found


def _choose_by_accuracy(points: Sequence[ExperimentPoint], methods: Sequence[str], target: float) -> dict[str, str]:
    """Choose for each method the safest of its points that reach the accuracy; ties go to the more accurate one."""
    chosen: dict[str, str] = {}
    for method in methods:
        fit = [
            (point.selection_asr.mean, -point.selection_task_accuracy.mean, place, point.label)
            for place, point in enumerate(points)
            if point.method == method
            and point.selection_asr is not None
            and point.selection_task_accuracy is not None
            and point.selection_task_accuracy.mean >= target
        ]
        if fit:
            chosen[method] = min(fit)[-1]
    return chosen


def _choose_by_loss(
    points: Sequence[ExperimentPoint], methods: Sequence[str], target: float, matching: MatchingSettings
) -> dict[str, str]:
    """Choose for each method the point whose final training loss is the nearest."""
    chosen: dict[str, str] = {}
    for method in methods:
        near = [
            (abs(point.final_loss_nats_per_token - target) / target, place, point.label)
            for place, point in enumerate(points)
            if point.method == method and point.final_loss_nats_per_token is not None and target > 0
        ]
        if near and min(near)[0] <= matching.training_loss_tolerance:
            chosen[method] = min(near)[-1]
    return chosen


def _compare_chosen(
    by: MatchedBy, target: float, chosen: dict[str, str], config: ExperimentConfig, folder: Path
) -> MatchedComparison:
    reference = config.matching.reference
    order = [reference, *(method for method in config.methods if method != reference)]
    groups = {method: _evaluations(folder, chosen[method], config.run.seeds) for method in order if method in chosen}
    can_compare = reference in groups and len(groups) > 1
    without_loss = {point.method: _why_no_loss(point.label, config) for point in config.points}
    tolerance = f"{config.matching.training_loss_tolerance:.0%}"
    reason = {
        "task_accuracy": f"no complete setting reaches a task accuracy of {target:.3f} on the selection prompts",
        "training_loss": f"no complete setting ends within {tolerance} of the loss",
    }[by]
    not_reached = {
        method: (without_loss[method] if by == "training_loss" else None) or reason
        for method in order
        if method not in chosen
    }
    return MatchedComparison(
        by=by,
        target=target,
        chosen={method: chosen[method] for method in order if method in chosen},
        not_reached=not_reached,
        comparison=_headlines(compare_evaluations(groups), folder) if can_compare else None,
    )


def _why_no_loss(label: str, config: ExperimentConfig) -> str | None:
    """Say why a point's final loss does not compare with the reference's, or return None if it does."""
    settings = config.run.training_for(label, 0)
    reference = next(point.label for point in config.points if point.method == config.matching.reference)
    if settings.before != config.run.training_for(reference, 0).before:
        return _OTHER_DATA
    return _CHANGED if settings.after else None


def _headlines(comparison: ModelComparison, folder: Path) -> ModelComparison:
    """Keep what methods are chosen for, by the headline judges, and correct over the methods alone.

    All judges and metrics together would be hundreds of tests, most of which repeat each other. Sources are named by
    their place in the folder, which may be moved.
    """
    first = {row.metric: row.judge for row in reversed(comparison.rows) if row.metric in _HEADLINES}
    rows = [row for row in comparison.rows if row.metric in first and row.judge == first[row.metric]]
    for row in rows:
        correct([row])
    sources = {
        label: [each.model_copy(update=_inside(each, folder)) for each in listed]
        for label, listed in comparison.sources.items()
    }
    return comparison.model_copy(update={"rows": rows, "sources": sources})


def _inside(source: EvaluationSource, folder: Path) -> dict[str, str]:
    names = {"path": source.path, "model": source.model}
    return {key: name.removeprefix(f"{folder}/") for key, name in names.items()}


def _evaluations(folder: Path, label: str, seeds: Sequence[int]) -> list[Path]:
    return [folder / "methods" / label / f"seed-{seed}" / "evaluation" for seed in seeds]


def _notes(points: Sequence[ExperimentPoint]) -> list[str]:
    lost = [point for point in points if point.missing]
    if not lost:
        return []
    cells = sum(len(point.missing) for point in lost)
    counted = "1 cell has" if cells == 1 else f"{cells} cells have"
    return [
        f"{counted} no result, such as {lost[0].label} with seed {lost[0].missing[0]}. A setting with a missing "
        "seed is not chosen for a matched comparison."
    ]
