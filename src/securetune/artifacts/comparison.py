"""What reporting writes: `comparison.json`, all methods of a run side by side."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from securetune.artifacts.agreement import JudgeAgreement
from securetune.artifacts.estimates import Artifact
from securetune.artifacts.robustness import ClosedFormAgreement


class MetricSummary(Artifact):
    """One metric of one method over its seeds.

    Attributes:
        mean: Mean over seeds (over prompts where there is one seed).
        low: Lower bound of the 95 % interval: over seeds and prompts for several seeds (two-level bootstrap), over
            prompts for one (Wilson for a rate, bootstrap for a rating).
        high: Upper bound.
        per_seed: One value a seed, in the order of the method's `seeds`.
    """

    mean: float
    low: float
    high: float
    per_seed: list[float]


class MetricDifference(Artifact):
    """How much a metric differs from the baseline's, with a 95 % interval (bootstrap over seeds and shared prompts).

    Attributes:
        mean: Method minus baseline.
        low: Lower bound.
        high: Upper bound.
    """

    mean: float
    low: float
    high: float


class UpdateNorms(Artifact):
    """How far training moved the modules from the start model, mean over seeds.

    The sets are those of the run's searched manifest for every method, also for one that trains without a manifest or
    with another one, so that the numbers of all methods can be compared.

    Attributes:
        inside: Root mean square of ‖ΔW‖ / ‖W‖ over the modules in Mods_Rob.
        outside: The same over all other projection modules.
        other: ‖ΔW‖ / ‖W‖ over embeddings, norms and the head together, or None where they have no update of their own.
    """

    inside: float
    outside: float
    other: float | None


class MethodComparison(Artifact):
    """One row of the comparison; a metric that was not measured is None.

    Attributes:
        method: Registered name of the defense, or None for the start model.
        is_control: The method is a control: it treats other modules as robust than the search chose, or freezes
            embeddings, norms and head.
        seeds: Training seeds whose evaluation is complete; empty for the start model.
        asr: Attack success rate on plain harmful prompts; with several such suites their unweighted mean.
        asr_minus_ift: Difference of `asr` to the plain fine-tuning of the run, or None if there is none.
        harmfulness: Mean rating on the same prompts.
        task_accuracy: Share of task items answered exactly right.
        over_refusal: Share of harmless prompts refused.
        wrapped_asr: Suite → attack success rate, for the suites with an attack wrapper.
        suite_asr: The same for every harmful suite.
        unusable_share: Share of all evaluated answers that are empty or looping.
        update_norms: From the training log, or None (the start model).
    """

    method: str | None
    is_control: bool
    seeds: list[int]
    asr: MetricSummary | None
    asr_minus_ift: MetricDifference | None
    harmfulness: MetricSummary | None
    task_accuracy: MetricSummary | None
    over_refusal: MetricSummary | None
    wrapped_asr: dict[str, MetricSummary]
    suite_asr: dict[str, MetricSummary]
    unusable_share: float
    update_norms: UpdateNorms | None


class Comparison(Artifact):
    """`comparison.json`: all methods of a run side by side.

    Attributes:
        verdict: One sentence, computed from the numbers.
        control_verdict: One sentence on whether the choice of modules matters, or None without controls.
        recommendation: Which method the run speaks for, and why; None where there is nothing to choose from.
        is_test_bench: The model is the embedded tiny world, whose numbers are no evidence about large models.
        asr_judge: Judge behind `asr` and the wrappers, or None if nothing was judged.
        over_refusal_judge: Judge behind `over_refusal`, or None.
        harmfulness_judge: Judge behind `harmfulness`, or None.
        methods: Label → its metrics; `start` is the untouched model.
        robust_modules: Names of the chosen modules; empty if there was no search.
        closed_form_vs_sampled: Agreement of the closed form with the sampled sweep, or None.
        seconds: Wall time of the run, or None if not recorded.
        agreement: How far every two judges agree over the answers of all models; empty with fewer than two.
    """

    format: Literal["securetune.comparison/1"] = "securetune.comparison/1"
    verdict: str
    control_verdict: str | None
    recommendation: str | None = None
    is_test_bench: bool
    asr_judge: str | None
    over_refusal_judge: str | None = None
    harmfulness_judge: str | None
    methods: dict[str, MethodComparison]
    robust_modules: list[str]
    closed_form_vs_sampled: ClosedFormAgreement | None
    seconds: float | None
    agreement: list[JudgeAgreement] = Field(default_factory=list)
