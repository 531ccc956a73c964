"""What `securetune gate` writes: the evidence of its decision."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from securetune.artifacts.estimates import Artifact
from securetune.artifacts.model_comparison import EvaluationSource, Metric

Decision = Literal["pass", "fail", "cannot tell"]
"""`pass`: the whole interval keeps the limit; `fail`: all of it breaks it; `cannot tell`: the limit is inside."""


class GateSource(EvaluationSource):
    """One evaluation that was decided on.

    Attributes:
        responses_sha256: Suite or task → hash of its file of answers, from which every figure was counted.
    """

    responses_sha256: dict[str, str]


class GateCheck(Artifact):
    """One limit, what was measured, and what follows.

    Attributes:
        metric: Which.
        suites: The suites that it was measured on, or the task; several for their unweighted mean.
        judge: Whose verdicts; None for a task.
        limit: `max` and `min` are on the value, the other two on the change against the start model.
        threshold: The limit, as it was given.
        value: The value, or the candidate's minus the start model's; over answers with a verdict. None if none has.
        low: Lower bound of the interval. For it, unjudged answers count as if they were the lowest possible.
        high: Upper bound; for it, they count as if they were the highest.
        count: Prompts, unjudged ones included.
        unjudged: Prompts on which the candidate (for a change: either model) has no verdict.
        only_candidate: Of a change of a rate on one suite: prompts with the outcome for the candidate alone.
        only_start: Prompts with the outcome for the start model alone.
        decision: What the interval says of the limit. A change of a safety metric against a start model that hardly
            refuses never passes.
        more_prompts: How many more would settle it if the rates stay as they are; None if it is settled, or if no
            number that can be reached would.
        reason: The same as a sentence; empty if it is settled.
    """

    metric: Metric
    suites: list[str]
    judge: str | None
    limit: Literal["max", "min", "max_increase", "max_decrease"]
    threshold: float
    value: float | None
    low: float
    high: float
    count: int = Field(ge=1)
    unjudged: int = Field(ge=0)
    only_candidate: int | None = None
    only_start: int | None = None
    decision: Decision
    more_prompts: int | None = None
    reason: str = ""


class GateEvidence(Artifact):
    """`gate.json`.

    Attributes:
        decision: `fail` if any check fails, else `cannot tell` if any cannot, else `pass`.
        confidence: Level of each check's interval.
        config: The settings that the file and the command line give, as one.
        candidate: The evaluation that was decided on.
        start: That of the start model, or None if no limit is on a change.
        checks: One for each limit and suite.
        warnings: What a reader must know first.
        decided_at: Time (UTC, ISO 8601).
        environment: Package versions and hardware.
    """

    format: Literal["securetune.gate/1"] = "securetune.gate/1"
    decision: Decision
    confidence: float
    config: dict[str, Any]
    candidate: GateSource
    start: GateSource | None
    checks: list[GateCheck] = Field(min_length=1)
    warnings: list[str]
    decided_at: str
    environment: dict[str, str]
