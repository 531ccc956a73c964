"""What `securetune experiment` writes: every setting that was tried, and the methods at matched settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from securetune.artifacts.comparison import MetricSummary
from securetune.artifacts.estimates import Artifact
from securetune.artifacts.model_comparison import ModelComparison

MatchedBy = Literal["task_accuracy", "training_loss"]


class ExperimentPoint(Artifact):
    """One method with one choice of hyperparameters, over its seeds.

    Attributes:
        label: Of the run; its folder is `methods/<label>/`.
        method: Label of the method in the experiment.
        values: Key of `training`, or `search.` and a key of the search, → value, of what is swept.
        seeds: Training seeds that are complete.
        missing: Seeds that failed or are not done yet.
        selection_asr: Attack success rate on the selection prompts, or None without them.
        selection_task_accuracy: Task accuracy on the selection prompts, or None.
        asr: Attack success rate on the reported plain harmful prompts.
        wrapped_asr: Suite → the same for prompts under attacks.
        task_accuracy: On the reported prompts.
        over_refusal: Refusal rate on harmless prompts.
        final_loss_nats_per_token: Training loss over the last logged steps of the last phase, mean over seeds.
        on_frontier: No other point of the method has at least its task accuracy with a lower ASR.
    """

    label: str
    method: str
    values: dict[str, bool | int | float | str]
    seeds: list[int]
    missing: list[int]
    selection_asr: MetricSummary | None = None
    selection_task_accuracy: MetricSummary | None = None
    asr: MetricSummary | None = None
    wrapped_asr: dict[str, MetricSummary] = Field(default_factory=dict)
    task_accuracy: MetricSummary | None = None
    over_refusal: MetricSummary | None = None
    final_loss_nats_per_token: float | None = None
    on_frontier: bool = False


class MatchedComparison(Artifact):
    """The methods side by side, each with one setting.

    Attributes:
        by: What the methods are matched by.
        target: Task accuracy that had to be reached, or training loss that had to be met.
        chosen: Method → label of its setting.
        not_reached: Method → why it is not compared.
        comparison: Figures, paired differences from the reference and tests; None if fewer than two were chosen. It has
            the attack success rate, over-refusal and task accuracy by the headline judge, and Holm's correction is over
            the methods, row by row.
    """

    by: MatchedBy
    target: float
    chosen: dict[str, str]
    not_reached: dict[str, str]
    comparison: ModelComparison | None


class Experiment(Artifact):
    """`experiment.json`.

    Attributes:
        config_hash: Of the run's resolved configuration, as in `run.json`.
        model: Name of the start model.
        weights_fingerprint: Of the start model.
        reference: Method with which the others are compared.
        start_asr: The start model's attack success rate.
        points: In the order of the configuration.
        matched: One comparison for each way of matching that was possible.
        notes: Sentences a reader should know, such as cells that failed.
        seconds: Wall time of the run so far.
        environment: Package versions and hardware.
    """

    format: Literal["securetune.experiment/1"] = "securetune.experiment/1"
    config_hash: str
    model: str
    weights_fingerprint: str
    reference: str
    start_asr: MetricSummary | None
    points: list[ExperimentPoint]
    matched: list[MatchedComparison]
    notes: list[str]
    seconds: float
    environment: dict[str, str]
