"""All methods of a run side by side: `comparison.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from securetune.artifacts import (
    Comparison,
    MethodComparison,
    MetricDifference,
    MetricSummary,
    Response,
    RobustModules,
    SuiteScores,
    UpdateNorms,
    Verdict,
)
from securetune.errors import ArtifactError
from securetune.reporting.compare_models import judge_differences
from securetune.reporting.intervals import Table, difference, summarize
from securetune.reporting.judges import run_agreement
from securetune.reporting.pairs import told_by_all
from securetune.reporting.recommendation import recommendation_sentence
from securetune.reporting.run_results import START, EvaluatedModel, RunResults, outcome_table, read_run
from securetune.reporting.verdict import control_sentence, verdict_sentence

BASELINE_METHOD = "ift"
"""Plain fine-tuning, with which the other methods are compared."""


def compare_runs(run_dir: Path | str) -> Comparison:
    """Compare the methods of a run folder, with all that is complete so far.

    Example:
        >>> compare_runs("runs/demo").methods["swat"].asr.mean  # doctest: +SKIP
        0.42

    Raises:
        ArtifactError: If the folder holds nothing of a run, or its files do not fit each other.
    """
    return compare(read_run(Path(run_dir)))


def compare(run: RunResults) -> Comparison:
    """Compare the methods of a run that was read already."""
    judges = _Judges.of(run)
    models = {START: [run.start]} if run.start else {}
    models |= run.methods
    rows = {label: _compare_method(label, found, run, judges) for label, found in models.items()}
    return Comparison(
        verdict=verdict_sentence(rows),
        control_verdict=control_sentence(rows),
        recommendation=recommendation_sentence(rows),
        is_test_bench=run.is_test_bench,
        asr_judge=judges.asr,
        over_refusal_judge=judges.refusal,
        harmfulness_judge=judges.harmfulness,
        methods=rows,
        robust_modules=[module.name for module in run.manifest.modules] if run.manifest else [],
        closed_form_vs_sampled=run.robustness.closed_form_at_epsilon if run.robustness else None,
        seconds=run.record.seconds if run.record else None,
        agreement=run_agreement(run),
    )


class _Judges:
    """The judges behind the headline numbers; the same for every model of a run."""

    def __init__(self, asr: str | None, refusal: str | None, harmfulness: str | None) -> None:
        self.asr = asr
        self.refusal = refusal
        self.harmfulness = harmfulness

    @classmethod
    def of(cls, run: RunResults) -> _Judges:
        """Find them, and refuse models that were judged differently.

        Raises:
            ArtifactError: If models differ in their judges.
        """
        first: EvaluatedModel | None = None
        for _, model in run.evaluated:
            first = first or model
            if problems := judge_differences(model, first):
                raise ArtifactError(problems)
        return cls(*_judges(first)) if first else cls(None, None, None)


def _judges(model: EvaluatedModel) -> tuple[str | None, str | None, str | None]:
    scores = model.scores
    return scores.asr_judge, scores.refusal_judge, scores.harmfulness_judge


def _compare_method(label: str, models: list[EvaluatedModel], run: RunResults, judges: _Judges) -> MethodComparison:
    suites = models[0].scores.suites
    plain = [suite for suite in suites if suite.kind == "harmful" and suite.wrapper is None]
    attacked = [suite for suite in suites if suite.kind == "harmful"] if judges.asr else []
    found = {suite.name: _metric(models, [suite.name], _attack_succeeded(judges), is_rate=True) for suite in attacked}
    attacks = {name: metric for name, metric in found.items() if metric is not None}
    return MethodComparison(
        method=_method_name(label, models),
        is_control=_is_control(models, run),
        seeds=[model.seed for model in models if model.seed is not None],
        asr=_metric(models, _names(plain), _attack_succeeded(judges), is_rate=True) if judges.asr else None,
        asr_minus_ift=_against_baseline(label, models, plain, run, judges),
        harmfulness=_metric(models, _names(plain), _harmfulness(judges), is_rate=False) if judges.harmfulness else None,
        task_accuracy=_task_accuracy(models),
        over_refusal=_over_refusal(models, judges),
        wrapped_asr={suite.name: attacks[suite.name] for suite in attacked if suite.wrapper and suite.name in attacks},
        suite_asr=attacks,
        unusable_share=_unusable_share(models),
        update_norms=_update_norms(models, run.manifest),
    )


def _names(suites: Sequence[SuiteScores]) -> list[str]:
    return [suite.name for suite in suites]


def _metric(
    models: list[EvaluatedModel], suites: Sequence[str], outcome: Callable[[Response], float], is_rate: bool
) -> MetricSummary | None:
    """Summarize over the prompts of which a judge told the outcome for every seed; without any, there is no metric."""
    told = [told_by_all([table])[0] for table in _tables(models, suites, outcome)]
    if not told or any(table.size == 0 for table in told):
        return None
    return summarize(told, is_rate)


def _tables(models: list[EvaluatedModel], suites: Sequence[str], outcome: Callable[[Response], float]) -> list[Table]:
    return [outcome_table(models, suite, outcome) for suite in suites]


def _attack_succeeded(judges: _Judges) -> Callable[[Response], float]:
    return lambda response: _number(_verdict(response, judges.asr).attack_succeeded)


def _harmfulness(judges: _Judges) -> Callable[[Response], float]:
    return lambda response: _number(_verdict(response, judges.harmfulness).harmfulness)


def _verdict(response: Response, judge: str | None) -> Verdict:
    """Return what a judge says of an answer; one that was not asked says nothing."""
    return response.verdicts.get(judge or "", Verdict())


def _number(told: bool | int | None) -> float:
    """Return what a judge told as a number; NaN, which is left out of every mean, where it told nothing."""
    return math.nan if told is None else float(told)


def _over_refusal(models: list[EvaluatedModel], judges: _Judges) -> MetricSummary | None:
    harmless = [suite.name for suite in models[0].scores.suites if suite.kind == "harmless"]
    if judges.refusal is None:
        return None
    return _metric(models, harmless, lambda response: _number(_verdict(response, judges.refusal).refused), is_rate=True)


def _task_accuracy(models: list[EvaluatedModel]) -> MetricSummary | None:
    task = models[0].scores.task
    return _metric(models, [task.name] if task else [], lambda response: bool(response.correct), is_rate=True)


def _against_baseline(
    label: str, models: list[EvaluatedModel], plain: Sequence[SuiteScores], run: RunResults, judges: _Judges
) -> MetricDifference | None:
    baseline = run.methods.get(BASELINE_METHOD)
    if label in (START, BASELINE_METHOD) or not baseline or not plain or judges.asr is None:
        return None
    ours, theirs = (_tables(found, _names(plain), _attack_succeeded(judges)) for found in (models, baseline))
    told = [told_by_all(both) for both in zip(ours, theirs, strict=True)]
    if any(table.size == 0 for both in told for table in both):
        return None
    return difference([here for here, _ in told], [there for _, there in told])


def _method_name(label: str, models: list[EvaluatedModel]) -> str | None:
    if label == START:
        return None
    return models[0].training.method if models[0].training else label


def _is_control(models: list[EvaluatedModel], run: RunResults) -> bool:
    """Whether a method trains on modules that the search did not choose, or treats embeddings unlike the others do."""
    training = models[0].training
    if training is None:
        return False
    shared = run.config.training.other_parameters if run.config else training.settings.get("other_parameters")
    own_embeddings = training.settings.get("other_parameters") != shared
    return training.selection not in (None, "searched") or own_embeddings


def _unusable_share(models: list[EvaluatedModel]) -> float:
    problems = [part.problems for model in models for part in [*model.scores.suites, model.scores.task] if part]
    counts = [suite.count for model in models for suite in model.scores.suites]
    counts += [model.scores.task.accuracy.count for model in models if model.scores.task]
    return sum(found.empty + found.looping for found in problems) / sum(counts) if counts else 0.0


def _update_norms(models: list[EvaluatedModel], manifest: RobustModules | None) -> UpdateNorms | None:
    """Average over seeds how far the modules moved, in the searched set and outside it."""
    updates = [model.training.update for model in models if model.training is not None]
    if not updates or manifest is None:
        return None
    robust = {module.name for module in manifest.modules}
    inside = [_root_mean_square([v for name, v in update.modules.items() if name in robust]) for update in updates]
    outside = [_root_mean_square([v for name, v in update.modules.items() if name not in robust]) for update in updates]
    other = [update.other.relative for update in updates if update.other is not None]
    return UpdateNorms(
        inside=sum(inside) / len(inside),
        outside=sum(outside) / len(outside),
        other=sum(other) / len(other) if other else None,
    )


def _root_mean_square(values: Sequence[float]) -> float:
    """Return the root mean square; 0 for no values, because a module without an update did not move."""
    return math.sqrt(sum(value**2 for value in values) / len(values)) if values else 0.0
