"""Settings of `securetune gate`: the limits that a model has to keep.

A metric has only the limits that make sense for it. An attack success rate with a `min` is an unknown key, because a
gate with its sign turned round would let the worst models through.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from securetune.config.base import NOT_SHOWN, Fraction, Settings
from securetune.config.checking import merge, validate
from securetune.config.files import read_yaml
from securetune.errors import ConfigError

Rating = Annotated[float, Field(ge=1.0, le=5.0)]
RatingChange = Annotated[float, Field(ge=0.0, le=4.0)]

LIMITS = ("max", "min", "max_increase", "max_decrease")
"""Names of the limits; the last two are on the change against the start model."""


class MetricLimits(Settings):
    """Base of a metric's limits; without any of them the metric is not checked."""

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        found = {name: getattr(self, name, None) for name in LIMITS}
        return {name: limit for name, limit in found.items() if limit is not None}

    @model_validator(mode="after")
    def _judges_something(self) -> MetricLimits:
        if getattr(self, "judge", None) is not None and not self.given:
            raise PydanticCustomError(NOT_SHOWN, "names a judge but no limit. Add a limit, or leave it out.")
        return self


class UpperRateLimits(MetricLimits):
    """Limits of a rate that should be low.

    Attributes:
        max: Highest rate, in [0, 1].
        max_increase: Most that it may be above the start model's, in [0, 1]; 0.02 is two points.
        judge: Whose verdicts; None takes the first judge of the evaluation that tells this metric.
    """

    max: Fraction | None = None
    max_increase: Fraction | None = None
    judge: str | None = None


class UpperRatingLimits(MetricLimits):
    """Limits of the mean harmfulness rating.

    Attributes:
        max: Highest mean, in [1, 5].
        max_increase: Most that it may be above the start model's, in [0, 4].
        judge: As for a rate.
    """

    max: Rating | None = None
    max_increase: RatingChange | None = None
    judge: str | None = None


class LowerRateLimits(MetricLimits):
    """Limits of a rate that should be high.

    Attributes:
        min: Lowest rate, in [0, 1].
        max_decrease: Most that it may be below the start model's, in [0, 1].
        judge: As for the others.
    """

    min: Fraction | None = None
    max_decrease: Fraction | None = None
    judge: str | None = None


class TaskLimits(MetricLimits):
    """Limits of the task accuracy, which no judge tells.

    Attributes:
        min: Lowest accuracy, in [0, 1].
        max_decrease: Most that it may be below the start model's, in [0, 1].
    """

    min: Fraction | None = None
    max_decrease: Fraction | None = None


class SuiteLimits(Settings):
    """Limits of everything that judges tell of a suite; the metrics are those of `securetune compare`.

    Attributes:
        attack_success_rate: Of harmful suites.
        refusal_rate: Of harmful suites.
        harmfulness: Mean rating from 1 to 5, of harmful suites.
        harmfulness_rate: Share of answers rated 5, of harmful suites.
        over_refusal_rate: Share refused, of harmless suites.
        full_refusal_rate: XSTest's full refusals, of harmless suites.
        partial_refusal_rate: XSTest's partial refusals, of harmless suites.
        incoherence_rate: Of all suites.
    """

    attack_success_rate: UpperRateLimits = UpperRateLimits()
    refusal_rate: LowerRateLimits = LowerRateLimits()
    harmfulness: UpperRatingLimits = UpperRatingLimits()
    harmfulness_rate: UpperRateLimits = UpperRateLimits()
    over_refusal_rate: UpperRateLimits = UpperRateLimits()
    full_refusal_rate: UpperRateLimits = UpperRateLimits()
    partial_refusal_rate: UpperRateLimits = UpperRateLimits()
    incoherence_rate: UpperRateLimits = UpperRateLimits()

    @property
    def limited(self) -> Iterator[tuple[str, Any]]:
        """The metrics that have a limit, with their limits."""
        for metric in SuiteLimits.model_fields:
            limits = getattr(self, metric)
            if limits.given:
                yield metric, limits


class GateConfig(SuiteLimits):
    """`securetune gate --config FILE`. Limits at the top hold for each suite on its own.

    Attributes:
        confidence: Level of each check's two-sided interval, in (0.5, 1). 0.95: what the rest of the package reports.
        suites: Suites that the limits at the top and those of `mean` hold for; each must have been evaluated. None: all
            that were, so that a suite that nobody evaluated is not missed.
        mean: Limits of the unweighted mean over those suites.
        by_suite: Suite → limits that hold for it beside the others.
        task_accuracy: Limits of the task.
    """

    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    suites: tuple[str, ...] | None = Field(default=None, min_length=1)
    mean: SuiteLimits = SuiteLimits()
    by_suite: dict[str, SuiteLimits] = Field(default_factory=dict)
    task_accuracy: TaskLimits = TaskLimits()

    @model_validator(mode="after")
    def _checks_something(self) -> GateConfig:
        parts: list[SuiteLimits] = [self, self.mean, *self.by_suite.values()]
        if not self.task_accuracy.given and not any(metric for part in parts for metric, _ in part.limited):
            raise PydanticCustomError(
                NOT_SHOWN, "a gate needs at least one limit; got none. Add one, such as attack_success_rate.max=0.05."
            )
        if self.suites is not None and len(set(self.suites)) < len(self.suites):
            raise PydanticCustomError(NOT_SHOWN, "suites: each must be given once, because all count alike in a mean.")
        if empty := [name for name, part in self.by_suite.items() if not list(part.limited)]:
            raise PydanticCustomError(NOT_SHOWN, "by_suite.{name}: must have a limit; got none", {"name": empty[0]})
        return self


def load_gate_config(path: Path | None, overrides: dict[str, Any]) -> GateConfig:
    """Read the limits from a file, from `KEY.PATH=VALUE` overrides, or from both; overrides win.

    Raises:
        ConfigError: If neither is given, or with every mistake in them.
    """
    if path is None and not overrides:
        raise ConfigError("a gate needs limits; got none. Give --config FILE, or --set attack_success_rate.max=0.05.")
    content = merge(read_yaml(path) if path is not None else {}, overrides)
    return validate(GateConfig, content, str(path) if path is not None else "")
