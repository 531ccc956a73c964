"""`securetune gate`: an evaluation held against limits, on values and on changes against the start model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from securetune.artifacts import (
    Decision,
    GateCheck,
    GateEvidence,
    GateSource,
    Response,
    environment,
    responses_path,
    sha256_files,
)
from securetune.config import GateConfig
from securetune.errors import ArtifactError, ProblemList
from securetune.reporting.compare_models import (
    METRICS,
    is_correct,
    outcome_of,
    read_evaluations,
    reference_warnings,
    require_alike,
    source_of,
    unsafe_suites,
)
from securetune.reporting.gate_plan import ON_CHANGES, Models, PlannedCheck, planned_checks
from securetune.reporting.intervals import Table
from securetune.reporting.limit_decisions import Limit, Observation, fill_in, fill_in_pairs, settle
from securetune.reporting.pairs import discordant_prompts, told_by_all
from securetune.reporting.run_results import EvaluatedModel, outcome_table

_LOWEST_RATING, _RATING_WIDTH = 1.0, 4.0
_SAFETY = ("attack_success_rate", "refusal_rate", "harmfulness", "harmfulness_rate")
"""Metrics whose changes say nothing where the start model has no safety to lose."""


def gate_evaluation(candidate: Path, config: GateConfig, start: Path | None = None) -> GateEvidence:
    """Decide whether an evaluated model keeps every limit.

    Args:
        candidate: Folder with `scores.json` and the answers.
        config: The limits.
        start: The same of the start model; needed for limits on changes.

    Raises:
        ConfigError: If a limit needs what was not evaluated: a suite, a judge, a task, the start model.
        ArtifactError: If an evaluation is missing or spoiled, or the two are not of the same prompts and judges.
    """
    models = _read(candidate, start)
    checks = [_check(planned, models, config.confidence) for planned in planned_checks(models, config)]
    evidence = [_against_safe_start(check, models) for check in checks]
    return GateEvidence(
        decision=overall([check.decision for check in evidence]),
        confidence=config.confidence,
        config=config.model_dump(mode="json", exclude_unset=True),
        candidate=_source(models.candidate),
        start=_source(models.start) if models.start else None,
        checks=evidence,
        warnings=_warnings(models),
        decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(),
    )


def overall(decisions: Sequence[Decision]) -> Decision:
    """Return the decision of a gate: as good as its worst check.

    Example:
        >>> overall(["pass", "cannot tell"])
        'cannot tell'
    """
    return next((worst for worst in ("fail", "cannot tell") if worst in decisions), "pass")


def _read(candidate: Path, start: Path | None) -> Models:
    groups = {"candidate": [candidate], **({"start": [start]} if start else {})}
    read = read_evaluations(groups)
    if start:
        require_alike(read, "start")
    models = Models(read["candidate"][0], read["start"][0] if start else None)
    problems = ProblemList()
    for model in models.given:
        for name, count in _counts(model).items():
            with problems.collect():
                _require_all_answers(model, name, count)
    problems.raise_if_any(ArtifactError)
    return models


def _counts(model: EvaluatedModel) -> dict[str, int]:
    counts = {suite.name: suite.count for suite in model.scores.suites}
    task = model.scores.task
    return counts | ({task.name: task.accuracy.count} if task else {})


def _require_all_answers(model: EvaluatedModel, name: str, count: int) -> None:
    """An answer that is missing from the file would be missing from the figure, and could be a harmful one."""
    identifiers = [response.id for response in model.responses(name)]
    if len(identifiers) != count or len(set(identifiers)) != count:
        raise ArtifactError(
            f"{responses_path(model.folder, name)}: must hold the {count} answers that scores.json counts; got "
            f"{len(identifiers)}, to {len(set(identifiers))} prompts. Evaluate again."
        )


def _check(planned: PlannedCheck, models: Models, confidence: float) -> GateCheck:
    is_change, is_rating = planned.limit in ON_CHANGES, planned.metric == "harmfulness"
    measured = models.given if is_change else [models.candidate]
    tables = [_shares(measured, planned, suite) for suite in planned.suites]
    observed = Observation(
        [fill_in_pairs(*table) if is_change else fill_in(table[0]) for table in tables],
        _sharing(models.candidate, planned.suites),
    )
    settled = settle(observed, _limit(planned, is_rating), confidence)
    told = [told_by_all([table])[0] for table in tables]
    means = [_mean(table) for table in told if table.size]
    value = float(np.mean(means)) if len(means) == len(tables) else None
    discordant = discordant_prompts(*told[0]) if is_change and not is_rating and len(told) == 1 else None
    low, high = (_as_given(bound, is_change, is_rating) for bound in observed.interval(confidence))
    return GateCheck(
        **planned._asdict(),
        value=None if value is None else _as_given(value, is_change, is_rating),
        low=low,
        high=high,
        count=observed.count,
        unjudged=observed.count - sum(table.shape[1] for table in told),
        only_candidate=None if discordant is None else discordant.only_here,
        only_start=None if discordant is None else discordant.only_reference,
        **settled._asdict(),
    )


def _against_safe_start(check: GateCheck, models: Models) -> GateCheck:
    """Leave open a change that keeps its limit against a start model without safety: it has none to lose."""
    unsafe = unsafe_suites([models.start]) if models.start is not None else {}
    if check.decision != "pass" or check.limit not in ON_CHANGES or check.metric not in _SAFETY or not unsafe:
        return check
    suite, told = next(iter(unsafe.items()))
    reason = f"the start model refuses only {told[0].rate.value:.0%} of {suite}, so that it has no safety to lose"
    return check.model_copy(update={"decision": "cannot tell", "reason": reason})


def _shares(models: list[EvaluatedModel], planned: PlannedCheck, suite: str) -> Table:
    """Return one row a model, the candidate first, on the scale of shares; NaN where there is no verdict."""
    outcome: Callable[[Response], Any] = (
        is_correct if planned.judge is None else outcome_of(METRICS[planned.metric], planned.judge)
    )
    table = outcome_table(models, suite, outcome)
    return (table - _LOWEST_RATING) / _RATING_WIDTH if planned.metric == "harmfulness" else table


def _mean(table: Table) -> float:
    return float(table[0].mean() - (table[1].mean() if len(table) == 2 else 0.0))


def _limit(planned: PlannedCheck, is_rating: bool) -> Limit:
    """Put a limit on the scale of shares; a decrease is a negative change."""
    threshold = -planned.threshold if planned.limit == "max_decrease" else planned.threshold
    if is_rating:
        threshold = (threshold - (0.0 if planned.limit in ON_CHANGES else _LOWEST_RATING)) / _RATING_WIDTH
    return Limit(threshold, planned.limit in ("max", "max_increase"))


def _as_given(share: float, is_change: bool, is_rating: bool) -> float:
    if not is_rating:
        return share
    return share * _RATING_WIDTH + (0.0 if is_change else _LOWEST_RATING)


def _sharing(model: EvaluatedModel, suites: Sequence[str]) -> list[list[int]]:
    """Put suites together that have a request in common, directly or through others."""
    groups: list[tuple[list[int], set[str]]] = []
    for place, suite in enumerate(suites):
        requests = {response.request for response in model.responses(suite)}
        joined = [group for group in groups if group[1] & requests]
        groups = [group for group in groups if group not in joined]
        groups.append(
            (
                [*(each for places, _ in joined for each in places), place],
                requests.union(*(known for _, known in joined)),
            )
        )
    return [places for places, _ in groups]


def _source(model: EvaluatedModel) -> GateSource:
    hashes = {name: sha256_files([responses_path(model.folder, name)]) for name in _counts(model)}
    return GateSource(**source_of(model).model_dump(), responses_sha256=hashes)


def _warnings(models: Models) -> list[str]:
    candidate, start = models
    if start is None:
        return []
    warnings = reference_warnings("the start model", [start])
    if candidate.scores.model.weights_fingerprint == start.scores.model.weights_fingerprint:
        warnings.append("the candidate has the weights of the start model: was the tuned model evaluated?")
    return warnings
