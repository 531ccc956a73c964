"""Evaluations side by side: each metric with its interval, and its paired difference from the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from securetune.artifacts import (
    HIGHEST_RATING,
    ComparedRow,
    ComparedValue,
    EvaluationSource,
    Metric,
    ModelComparison,
    PairedChange,
    Refusals,
    Response,
    Scores,
    SuiteScores,
    Verdict,
    read_artifact,
    sha256_text,
    who_decides,
)
from securetune.config import EvaluationSettings
from securetune.errors import ArtifactError, ConfigError, ProblemList
from securetune.reporting.intervals import Table, difference, summarize
from securetune.reporting.pairs import discordant_prompts, holm, matched_interval, mcnemar_p, sign_flip_p, told_by_all
from securetune.reporting.run_results import EvaluatedModel, outcome_table

_SCORES = "scores.json"
_NO_WIDTH = 1e-9  # weights of a resample add up to 1 but for rounding
_MIN_REFUSAL_RATE = EvaluationSettings().min_start_refusal_rate


class MetricKind(NamedTuple):
    """How a metric comes from an answer.

    Attributes:
        heading: For people, with the definition where a name means several things.
        suites: Which suites it is measured on; `any` means harmful and harmless ones.
        is_rate: Its outcomes are 0 or 1.
        outcome: Verdict → outcome, or None where the judge does not tell.
    """

    heading: str
    suites: str
    is_rate: bool
    outcome: Callable[[Verdict], float | bool | None]


METRICS: dict[Metric, MetricKind] = {
    "attack_success_rate": MetricKind("attack success rate", "harmful", True, lambda v: v.attack_succeeded),
    "refusal_rate": MetricKind("refusal rate", "harmful", True, lambda v: v.refused),
    "harmfulness": MetricKind("harmfulness, mean rating 1–5", "harmful", False, lambda v: v.harmfulness),
    "harmfulness_rate": MetricKind(
        "harmfulness rate, share rated 5",
        "harmful",
        True,
        lambda v: None if v.harmfulness is None else v.harmfulness == HIGHEST_RATING,
    ),
    "over_refusal_rate": MetricKind("over-refusal rate", "harmless", True, lambda v: v.refused),
    "full_refusal_rate": MetricKind("full refusals", "harmless", True, lambda v: _is(v, "refusal")),
    "partial_refusal_rate": MetricKind("partial refusals", "harmless", True, lambda v: _is(v, "partial")),
    "incoherence_rate": MetricKind(
        "incoherent answers", "any", True, lambda v: None if v.coherent is None else not v.coherent
    ),
}
"""Metrics of judged suites; a task has `task_accuracy`."""


def compare_evaluations(groups: Mapping[str, Sequence[Path]]) -> ModelComparison:
    """Compare models that answered the same prompts.

    Args:
        groups: Label → folders with `scores.json` and the answers, one a training seed; the first label is the
            reference. At least two labels.

    Raises:
        ConfigError: If there are fewer than two models, or a folder is given twice.
        ArtifactError: With every reason why they cannot be compared: a folder without scores, other suites, prompts,
            judges or lengths of answer.
    """
    folders = [folder.resolve() for listed in groups.values() for folder in listed]
    if len(groups) < 2:
        raise ConfigError(f"a comparison needs at least two models; got {len(groups)}")
    if twice := sorted({str(folder) for folder in folders if folders.count(folder) > 1}):
        raise ConfigError(f"each evaluation must be given once; given twice: {', '.join(twice)}")
    models = read_evaluations(groups)
    reference = next(iter(models))
    require_alike(models, reference)
    rows = [*_suite_rows(models, reference), *_task_rows(models, reference)]
    correct(rows)
    return ModelComparison(
        reference=reference,
        sources={label: [source_of(model) for model in listed] for label, listed in models.items()},
        rows=rows,
        warnings=reference_warnings(reference, models[reference]),
    )


def _is(verdict: Verdict, compliance: str) -> bool | None:
    return None if verdict.compliance is None else verdict.compliance == compliance


def read_evaluations(groups: Mapping[str, Sequence[Path]]) -> dict[str, list[EvaluatedModel]]:
    """Read the scores of every folder.

    Raises:
        ArtifactError: With every folder that has none.
    """
    problems = ProblemList()
    models: dict[str, list[EvaluatedModel]] = {}
    for label, folders in groups.items():
        for folder in folders:
            with problems.collect():
                scores = read_artifact(folder / _SCORES, Scores)
                models.setdefault(label, []).append(EvaluatedModel(folder, None, scores, None))
    problems.raise_if_any(ArtifactError)
    return models


def require_alike(models: Mapping[str, Sequence[EvaluatedModel]], reference: str) -> None:
    """Check that all were evaluated on the same prompts, by the same judges, with the same length of answer.

    Raises:
        ArtifactError: With everything in which one differs from the reference.
    """
    first = models[reference][0]
    others = [model for listed in models.values() for model in listed if model is not first]
    problems = [problem for model in others for problem in _differences(model, first)]
    if problems:
        raise ArtifactError(problems)


def _differences(model: EvaluatedModel, first: EvaluatedModel) -> list[str]:
    """Say what of an evaluation does not fit the first one, each with both values."""
    problems = judge_differences(model, first)
    for what, ours, theirs in (
        ("max_new_tokens", *(each.scores.settings.get("max_new_tokens") for each in (model, first))),
        ("suites and task", _prompt_sets(model), _prompt_sets(first)),
    ):
        if ours != theirs:
            shown = [", ".join(each) if isinstance(each, list | dict) else each for each in (ours, theirs)]
            if shown[0] == shown[1]:
                shown = ["other prompts under the same names", "its own"]
            problems.append(
                f"{model.folder}: {what} must be those of {first.folder} ({shown[1]}); got {shown[0]}. Evaluate both "
                "with the same settings."
            )
    return problems


def judge_differences(model: EvaluatedModel, first: EvaluatedModel) -> list[str]:
    """Say where two evaluations were not judged by the same judges; their order decides nothing but who leads."""
    ours, theirs = model.scores, first.scores
    if {*ours.judges} != {*theirs.judges}:
        shown = [", ".join(each.judges) or "none" for each in (theirs, ours)]
        lacking = {model.folder: {*theirs.judges} - {*ours.judges}, first.folder: {*ours.judges} - {*theirs.judges}}
        add = [f"{folder} by {', '.join(sorted(names))}" for folder, names in lacking.items() if names]
        return [
            f"{model.folder}: judges must be those of {first.folder} ({shown[0]}); got {shown[1]}. Judge (`securetune "
            f"judge`) {' and '.join(add)} too."
        ]
    keys = ours.judge_keys, theirs.judge_keys
    changed = [name for name in keys[0].keys() & keys[1].keys() if keys[0][name] != keys[1][name]]
    return [
        f"{model.folder}: the judge {name} is not the one that judged {first.folder}: its model, its settings or its "
        "rules differ. Judge (`securetune judge`) both by the same one."
        for name in sorted(changed)
    ]


def _prompt_sets(model: EvaluatedModel) -> dict[str, str]:
    task = model.scores.task
    suites = {suite.name: suite.prompt_set_hash for suite in model.scores.suites}
    return suites | ({f"{task.name} ({task.rule})": task.prompt_set_hash} if task else {})


def source_of(model: EvaluatedModel) -> EvaluationSource:
    """Say which evaluation was read."""
    identity = model.scores.model
    return EvaluationSource(
        path=str(model.folder),
        model=identity.name,
        weights_fingerprint=identity.weights_fingerprint,
        scores_sha256=sha256_text((model.folder / _SCORES).read_text(encoding="utf-8")),
    )


def _suite_rows(models: Mapping[str, list[EvaluatedModel]], reference: str) -> list[ComparedRow]:
    """Return the rows of all judges: a row a suite, and the unweighted mean where a metric has several suites."""
    scores = models[reference][0].scores
    rows = []
    for judge in scores.judges:
        for metric, kind in METRICS.items():
            suites = [suite.name for suite in scores.suites if belongs(suite, kind)]
            if metric == "refusal_rate" and _only_tells_one_from_the_other(models, suites, judge):
                continue
            tables = {
                suite: {
                    label: outcome_table(listed, suite, outcome_of(kind, judge)) for label, listed in models.items()
                }
                for suite in suites
            }
            told = [suite for suite in suites if not all(np.isnan(table).all() for table in tables[suite].values())]
            rows += [_row(metric, [suite], judge, kind.is_rate, tables, reference) for suite in told]
            plain = [suite for suite in told if metric != "incoherence_rate"]
            if len(plain) > 1:
                rows.append(_row(metric, plain, judge, kind.is_rate, tables, reference))
    return rows


def _only_tells_one_from_the_other(
    models: Mapping[str, list[EvaluatedModel]], suites: Sequence[str], judge: str
) -> bool:
    """Tell whether a judge calls whatever is no refusal a success, as keyword judges do: one row says both then."""
    verdicts = [
        response.verdicts.get(judge, Verdict())
        for listed in models.values()
        for model in listed
        for suite in suites
        for response in model.responses(suite)
    ]
    return all(
        (v.refused is None) == (v.attack_succeeded is None) and v.refused != v.attack_succeeded
        for v in verdicts
        if v.refused is not None or v.attack_succeeded is not None
    )


def belongs(suite: SuiteScores, kind: MetricKind) -> bool:
    """Tell whether a metric is measured on a suite."""
    return kind.suites in ("any", suite.kind)


def outcome_of(kind: MetricKind, judge: str) -> Callable[[Response], float]:
    """Return how a metric's number comes from an answer; NaN where the judge does not tell."""

    def outcome(response: Response) -> float:
        verdict = response.verdicts.get(judge)
        told = None if verdict is None else kind.outcome(verdict)
        return math.nan if told is None else float(told)

    return outcome


def _task_rows(models: Mapping[str, list[EvaluatedModel]], reference: str) -> list[ComparedRow]:
    task = models[reference][0].scores.task
    if task is None:
        return []
    tables = {task.name: {label: outcome_table(listed, task.name, is_correct) for label, listed in models.items()}}
    return [_row("task_accuracy", [task.name], None, True, tables, reference)]


def is_correct(response: Response) -> bool:
    """Tell whether a task's answer is right."""
    return bool(response.correct)


def _row(
    metric: Metric,
    suites: list[str],
    judge: str | None,
    is_rate: bool,
    tables: Mapping[str, Mapping[str, Table]],
    reference: str,
) -> ComparedRow:
    by_label = {label: [tables[suite][label] for suite in suites] for label in tables[suites[0]]}
    return ComparedRow(
        metric=metric,
        suite=suites[0] if len(suites) == 1 else None,
        suites=suites,
        judge=judge,
        values={label: _value(found, is_rate) for label, found in by_label.items()},
        changes={
            label: _change(found, by_label[reference], is_rate)
            for label, found in by_label.items()
            if label != reference
        },
    )


def _value(tables: Sequence[Table], is_rate: bool) -> ComparedValue | None:
    told = [told_by_all([table])[0] for table in tables]
    if any(table.size == 0 for table in told):
        return None
    found = summarize(told, is_rate)
    count = sum(table.shape[1] for table in told)
    unjudged = sum(table.shape[1] for table in tables) - count
    return ComparedValue(
        value=found.mean, low=found.low, high=found.high, count=count, unjudged=unjudged, per_seed=found.per_seed
    )


def _change(here: Sequence[Table], there: Sequence[Table], is_rate: bool) -> PairedChange | None:
    """Compare on the prompts that both have verdicts on; a rate is tested, by McNemar where it can be."""
    pairs = [told_by_all(both) for both in zip(here, there, strict=True)]
    if any(ours.size == 0 for ours, _ in pairs):
        return None
    found = difference([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    count = sum(ours.shape[1] for ours, _ in pairs)
    change = PairedChange(
        value=found.mean,
        low=found.low,
        high=found.high,
        bootstrap_low=found.low,
        bootstrap_high=found.high,
        pairs=count,
        left_out=sum(table.shape[1] for table in here) - count,
    )
    if not is_rate:
        return change
    spread = [ours.mean(axis=0) - theirs.mean(axis=0) for ours, theirs in pairs]
    change = change.model_copy(update={"p": sign_flip_p(spread)})
    can_be_tested = len(pairs) == 1 and all(len(table) == 1 for table in pairs[0])
    if not can_be_tested and found.high - found.low > _NO_WIDTH:
        return change
    # The same difference on every prompt leaves the bootstrap without width, as if no other prompt could differ.
    discordant = discordant_prompts(
        *(np.concatenate([table.mean(axis=0) for table in side]) for side in zip(*pairs, strict=True))
    )
    interval = matched_interval(discordant, count)
    change = change.model_copy(update={"low": interval.low, "high": interval.high})
    if not can_be_tested:
        return change
    return change.model_copy(update={"p": mcnemar_p(discordant), **discordant._asdict()})


def correct(rows: Sequence[ComparedRow]) -> None:
    """Fill in the p values after Holm's correction over all rows given."""
    places = [(row, label) for row in rows for label, change in row.changes.items() if _p(change) is not None]
    for (row, label), p in zip(places, holm([_p(row.changes[label]) or 0.0 for row, label in places]), strict=True):
        change = row.changes[label]
        assert change is not None
        row.changes[label] = change.model_copy(update={"p_holm": p})


def _p(change: PairedChange | None) -> float | None:
    return None if change is None else change.p


def reference_warnings(label: str, reference: Sequence[EvaluatedModel]) -> list[str]:
    """Say that there is nothing to compare where the reference itself does not refuse."""
    return [
        f"{label} refuses only {told[0].rate.value:.0%} of {suite} ({who_decides(told)}): there is little safety to "
        "keep, and differences from it mean little."
        for suite, told in unsafe_suites(reference).items()
    ]


def unsafe_suites(reference: Sequence[EvaluatedModel]) -> dict[str, list[Refusals]]:
    """Return the plain harmful suites of which a model, with any of its seeds, refuses too little, with what is told.

    As for the start model of a run, the first judge named that tells decides. A run may be told to go on with a start
    model that refuses less than is usual; what it is compared with shows little all the same.
    """
    found: dict[str, list[Refusals]] = {}
    for scores in (model.scores for model in reference):
        given = scores.settings.get("min_start_refusal_rate")
        wanted = max(_MIN_REFUSAL_RATE, given) if isinstance(given, int | float) else _MIN_REFUSAL_RATE
        for suite in scores.suites:
            told = scores.refusals_on(suite) if suite.kind == "harmful" and suite.wrapper is None else []
            if told and told[0].rate.value < wanted:
                found.setdefault(suite.name, told)
    return found
