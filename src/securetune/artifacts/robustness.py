"""What analysis and search write: `robustness.json` and the manifest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from securetune.artifacts.estimates import Artifact, ModelIdentity


def parameter_path(module_name: str) -> str:
    """Return where a module's weights lie: its name without the part in brackets.

    Example:
        >>> parameter_path("model.layers.2.self_attn.qkv_proj[Q]")
        'model.layers.2.self_attn.qkv_proj'
    """
    return module_name.partition("[")[0]


class ModuleRobustness(Artifact):
    """How much one module disturbs the security features when it is perturbed.

    Attributes:
        name: Path as `named_modules()` gives it, such as `model.layers.2.mlp.up_proj`; for a part of a parameter, its
            type in brackets behind it: `model.layers.2.self_attn.qkv_proj[Q]`.
        type: One of Q, K, V, O, Gate, Up, Down.
        layer: Index of the layer, from 0.
        parameter_count: Number of weights in the module.
        accuracy: Accuracy of the unchanged classifier on harmful prompts, mean over noise seeds, in [0, 1].
        accuracy_low: Lower bound of its 95 % interval over seeds and prompts.
        accuracy_high: Upper bound.
        margin_fall: Mean fall of the classifier's logit on harmful prompts, over seeds and prompts.
        margin_fall_low: Lower bound of its 95 % interval.
        margin_fall_high: Upper bound.
        sampled_shift: Root-mean-square shift of the logit over all scored prompts and seeds.
        closed_form_shift: The same to first order, without sampling: ε·rms(W)·‖∂z/∂W‖_F for noise, |α⟨∂z/∂W, ΔW⟩| for
            an update; None for a perturbation without a closed form.
        refusal_margin_fall: Mean fall of the refusal margin (log-odds of a refusal opening against a compliance opening
            at the first answer token) on harmful prompts; None, as all of the next seven, if the margin is not defined.
        refusal_margin_fall_low: Lower bound of its 95 % interval.
        refusal_margin_fall_high: Upper bound.
        refusal_share: Share of the harmful prompts whose margin stays above 0, in [0, 1].
        refusal_share_low: Lower bound of its 95 % interval.
        refusal_share_high: Upper bound.
        refusal_sampled_shift: Root-mean-square shift of the margin.
        refusal_closed_form_shift: The same to first order.
        drift: For each layer, the mean cosine between the perturbed and the intact state of the last prompt token; None
            below the module, where nothing changes.
        drift_low: Lower bounds of their 95 % intervals over seeds and prompts.
        drift_high: Upper bounds.
        layer_accuracy: For each layer, the share of harmful prompts that the layer's own classifier still recognises;
            None below the module.
        layer_accuracy_low: Lower bounds of their 95 % intervals.
        layer_accuracy_high: Upper bounds.
        retrained_accuracy: Balanced accuracy of a classifier fitted anew to the perturbed features, on scored prompts:
            high where the information is only moved. None without controls.
    """

    name: str
    type: str
    layer: int
    parameter_count: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    margin_fall: float
    margin_fall_low: float
    margin_fall_high: float
    sampled_shift: float
    closed_form_shift: float | None
    refusal_margin_fall: float | None = None
    refusal_margin_fall_low: float | None = None
    refusal_margin_fall_high: float | None = None
    refusal_share: float | None = None
    refusal_share_low: float | None = None
    refusal_share_high: float | None = None
    refusal_sampled_shift: float | None = None
    refusal_closed_form_shift: float | None = None
    drift: tuple[float | None, ...] = ()
    drift_low: tuple[float | None, ...] = ()
    drift_high: tuple[float | None, ...] = ()
    layer_accuracy: tuple[float | None, ...] = ()
    layer_accuracy_low: tuple[float | None, ...] = ()
    layer_accuracy_high: tuple[float | None, ...] = ()
    retrained_accuracy: float | None = None


class ClosedFormAgreement(Artifact):
    """How well the closed form predicts the sampled sweep, over modules.

    Attributes:
        spearman: Rank correlation of the two shifts.
        median_ratio: Median over modules of closed form / sampled.
        epsilon: Relative size of the noise at which they were compared.
        noise_seeds: Number of noise draws per module.
    """

    spearman: float
    median_ratio: float
    epsilon: float
    noise_seeds: int


class RefusalOpenings(Artifact):
    """The tokens between which the refusal margin is measured.

    Attributes:
        refusal: First tokens of refusals, the most probable first.
        compliance: First tokens of answers.
        refusal_mass: Probability of the first on the fitting harmful prompts, intact model, in [0, 1].
        compliance_mass: Probability of the second on the fitting harmless prompts.
        intact_margin: Mean margin on the scored harmful prompts, intact model.
    """

    refusal: list[str]
    compliance: list[str]
    refusal_mass: float
    compliance_mass: float
    intact_margin: float


class AnalysisControl(Artifact):
    """One objection to the analysis, what was measured against it, and the answer.

    Attributes:
        name: Such as `retrained classifier`.
        value: What was measured.
        passed: Whether the analysis stands it; None where it could not be tested with these prompts.
        sentence: The result in words, with the numbers.
    """

    name: str
    value: float | None
    passed: bool | None
    sentence: str


class RobustnessReport(Artifact):
    """`robustness.json`: the result of the analysis.

    Attributes:
        model: The analyzed model.
        prompt_set_hash: Hash of the probe prompts, all splits.
        settings: Resolved analysis settings.
        epsilon: Size of the perturbation used for `modules`: noise relative to the weights, or the factor of an update.
        calibration: Each size tried, with the mean and the spread over modules of the accuracy it gave.
        classifier: Accuracy of the classifier on its fitting prompts and on the scored ones, intact model, and counts.
        closed_form_at_epsilon: Agreement of the two scores at `epsilon`; None for a perturbation without a closed form.
        closed_form_small_noise: The same at a noise so small that the first order must hold (a check of the formula).
        refusal_openings: What the refusal margin is measured between, or None if the model's answers begin alike.
        refusal_closed_form_small_noise: As `closed_form_small_noise`, for the refusal margin.
        layer_accuracies: Balanced accuracy of each layer's own classifier on the scored prompts, intact model.
        controls: What was tested of the analysis itself.
        modules: One entry a module, in the model's own order.
        duration_seconds: Wall time of the sweep and of the closed form.
        environment: Package versions and hardware.
    """

    format: Literal["securetune.robustness/1"] = "securetune.robustness/1"
    model: ModelIdentity
    prompt_set_hash: str
    settings: dict[str, Any]
    epsilon: float
    calibration: list[dict[str, float]]
    classifier: dict[str, float]
    closed_form_at_epsilon: ClosedFormAgreement | None
    closed_form_small_noise: ClosedFormAgreement
    refusal_openings: RefusalOpenings | None = None
    refusal_closed_form_small_noise: ClosedFormAgreement | None = None
    layer_accuracies: tuple[float, ...] = ()
    controls: tuple[AnalysisControl, ...] = ()
    modules: list[ModuleRobustness]
    duration_seconds: dict[str, float]
    environment: dict[str, str]


class SelectedModule(Artifact):
    """One chosen module; `robustness_rank` counts from 0, the most robust first."""

    name: str
    type: str
    layer: int
    parameter_count: int
    robustness_rank: int


class RobustModules(Artifact):
    """`robust_modules.json`, the manifest: the set of modules that training treats as robust (Mods_Rob).

    Attributes:
        model: The model that was analyzed. Training refuses a manifest made for another model or chat template.
        prompt_set_hash: Hash of the probe prompts behind it.
        selection: How it was made: `searched` (joint re-testing), or a control of the same size: `sensitive` (the least
            robust modules), `random`, `top-k` (the most robust ones, not tested jointly) or `pattern` (the deepest
            layers without Q and K, the paper's patterns as a rule).
        settings: Resolved search settings, with ε.
        modules: The chosen modules, in the model's own order.
        parameter_fraction: Their share of all projection parameters, in [0, 1].
        joint_accuracy: Accuracy of the unchanged classifier on harmful prompts with all chosen modules perturbed; None
            for a control that was not tested.
        intact_accuracy: The same with none perturbed.
        sensitivities: Each projection of the model, chosen or not → the root-mean-square shift of the classifier's
            logit when it alone is perturbed at the analysis' size: the closed form, or sampled where the perturbation
            has none. Empty in files of earlier versions.
    """

    format: Literal["securetune.robust_modules/1"] = "securetune.robust_modules/1"
    model: ModelIdentity
    prompt_set_hash: str
    selection: Literal["searched", "sensitive", "random", "top-k", "pattern"]
    settings: dict[str, Any]
    modules: list[SelectedModule]
    parameter_fraction: float
    joint_accuracy: float | None
    intact_accuracy: float
    sensitivities: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = Field(default_factory=dict)


class SearchVariant(Artifact):
    """The search with one setting changed.

    Attributes:
        tolerance: Of this variant.
        target_fraction: Of this variant.
        seed: First noise seed.
        modules: What it chose.
        parameter_fraction: Share of the projection parameters.
        joint_accuracy: With all of them perturbed, at the manifest's noise size.
        jaccard: Overlap with the manifest's set: modules in both over modules in either, in [0, 1].
    """

    tolerance: float
    target_fraction: float
    seed: int
    modules: list[str]
    parameter_fraction: float
    joint_accuracy: float | None
    jaccard: float


class ComparedSet(Artifact):
    """Another rule's set of the same size, tested like the searched one.

    Attributes:
        selection: The rule.
        parameter_fraction: Share of the projection parameters.
        joint_accuracy: With all of it perturbed, at the manifest's noise size.
        jaccard: Overlap with the manifest's set, in [0, 1].
    """

    selection: str
    parameter_fraction: float
    joint_accuracy: float | None
    jaccard: float


class SearchStudy(Artifact):
    """`search_study.json`: how far the searched set depends on the settings and the seeds, and what other rules choose.

    Attributes:
        model: The model.
        prompt_set_hash: Hash of the probe prompts.
        settings: Resolved search settings of the manifest.
        required_accuracy: What the manifest's set had to reach.
        seeds: The same settings with other noise seeds.
        mean_jaccard_over_seeds: Mean overlap over all pairs of them, the manifest included.
        tolerances: Other tolerances.
        target_fractions: Other target fractions.
        other_rules: Sets of the same size by other rules.
    """

    format: Literal["securetune.search_study/1"] = "securetune.search_study/1"
    model: ModelIdentity
    prompt_set_hash: str
    settings: dict[str, Any]
    required_accuracy: float
    seeds: list[SearchVariant]
    mean_jaccard_over_seeds: float
    tolerances: list[SearchVariant]
    target_fractions: list[SearchVariant]
    other_rules: list[ComparedSet]
