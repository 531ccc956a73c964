"""What `securetune compare` writes: models side by side, with paired differences."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from securetune.artifacts.estimates import Artifact

Metric = Literal[
    "attack_success_rate",
    "refusal_rate",
    "harmfulness",
    "harmfulness_rate",
    "over_refusal_rate",
    "full_refusal_rate",
    "partial_refusal_rate",
    "incoherence_rate",
    "task_accuracy",
]
"""What is compared; `securetune.reporting.METRICS` says what each one is."""


class EvaluationSource(Artifact):
    """One evaluation that was read.

    Attributes:
        path: Its folder, as the user gave it.
        model: Name of the evaluated model, as given then. For people.
        weights_fingerprint: Of that model.
        scores_sha256: Hash of `scores.json`.
    """

    path: str
    model: str
    weights_fingerprint: str
    scores_sha256: str


class ComparedValue(Artifact):
    """A metric of one model on one suite.

    Attributes:
        value: Mean over prompts (and seeds).
        low: Lower bound of the 95 % interval: Wilson's for a rate of one seed, a percentile bootstrap over prompts
            for a rating, over seeds and prompts for several seeds or suites.
        high: Upper bound.
        count: Prompts that every compared seed has a verdict on.
        unjudged: Prompts left out because a verdict is missing.
        per_seed: One value a seed.
    """

    value: float
    low: float
    high: float
    count: int = Field(ge=1)
    unjudged: int = 0
    per_seed: list[float]


class PairedChange(Artifact):
    """A model's metric minus the reference's, on the prompts on which both have a verdict.

    Attributes:
        value: The difference.
        low: Lower bound of the 95 % interval: for a rate of one seed each Agresti and Min's (2005) for matched pairs,
            also where every prompt shows the same difference; otherwise the bootstrap's.
        high: Upper bound.
        bootstrap_low: Lower bound of the paired percentile bootstrap: prompts are drawn for both models together.
        bootstrap_high: Upper bound.
        pairs: Prompts that both were compared on.
        left_out: Prompts on which one of them has no verdict.
        only_here: Prompts with the outcome under this model alone (McNemar's b); None unless a rate of one seed each.
        only_reference: Prompts with the outcome under the reference alone (McNemar's c).
        p: Two-sided p value of a rate: McNemar's exact test for one seed and suite; otherwise a sign-flip permutation
            test over prompts, which speaks of other prompts and these seeds. None for a rating.
        p_holm: The same after Holm's correction over all p values of the comparison.
    """

    value: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    pairs: int = Field(ge=1)
    left_out: int = 0
    only_here: int | None = None
    only_reference: int | None = None
    p: float | None = None
    p_holm: float | None = None


class ComparedRow(Artifact):
    """One metric by one judge on one suite, for all models.

    Attributes:
        metric: Which.
        suite: Name of the suite or task; None for the unweighted mean over the suites listed in `suites`.
        suites: The suites of a mean; otherwise the one suite.
        judge: Whose verdicts; None for a task.
        values: Label → value, the reference first; None where the model has no verdict of the kind.
        changes: Label → change against the reference, for all others.
    """

    metric: Metric
    suite: str | None
    suites: list[str]
    judge: str | None
    values: dict[str, ComparedValue | None]
    changes: dict[str, PairedChange | None]


class ModelComparison(Artifact):
    """`securetune compare --out FILE`: models that answered the same prompts, side by side.

    Attributes:
        reference: Label of the model that the others are compared with.
        sources: Label → its evaluations, one a seed.
        rows: The table.
        warnings: What a reader must know first, such as a reference that does not refuse.
    """

    format: Literal["securetune.model-comparison/1"] = "securetune.model-comparison/1"
    reference: str
    sources: dict[str, list[EvaluationSource]]
    rows: list[ComparedRow]
    warnings: list[str]
