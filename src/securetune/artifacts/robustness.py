"""What analysis and search write: `robustness.json` and the manifest."""

from __future__ import annotations

from typing import Any, Literal

from securetune.artifacts.estimates import Artifact, ModelIdentity


class ModuleRobustness(Artifact):
    """How much one module disturbs the security features when it is perturbed.

    Attributes:
        name: Path as `named_modules()` gives it, such as `model.layers.2.mlp.up_proj`.
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
        closed_form_shift: The same to first order, without sampling: ε·rms(W)·‖∂z/∂W‖_F.
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
    closed_form_shift: float


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


class RobustnessReport(Artifact):
    """`robustness.json`: the result of the analysis.

    Attributes:
        model: The analyzed model.
        prompt_set_hash: Hash of the probe prompts, all splits.
        settings: Resolved analysis settings.
        epsilon: Relative noise size used for `modules`.
        calibration: Each ε tried, with the mean and the spread over modules of the accuracy it gave.
        classifier: Accuracy of the classifier on its fitting prompts and on the scored ones, intact model, and counts.
        closed_form_at_epsilon: Agreement of the two scores at `epsilon`.
        closed_form_small_noise: The same at a noise so small that the first order must hold (a check of the formula).
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
    closed_form_at_epsilon: ClosedFormAgreement
    closed_form_small_noise: ClosedFormAgreement
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
        selection: How it was made: `searched` (joint re-testing), or a control: `sensitive` (the least robust modules
            of the same size) or `random`.
        settings: Resolved search settings, with ε.
        modules: The chosen modules, in the model's own order.
        parameter_fraction: Their share of all projection parameters, in [0, 1].
        joint_accuracy: Accuracy of the unchanged classifier on harmful prompts with all chosen modules perturbed; None
            for a control that was not tested.
        intact_accuracy: The same with none perturbed.
    """

    format: Literal["securetune.robust_modules/1"] = "securetune.robust_modules/1"
    model: ModelIdentity
    prompt_set_hash: str
    selection: Literal["searched", "sensitive", "random"]
    settings: dict[str, Any]
    modules: list[SelectedModule]
    parameter_fraction: float
    joint_accuracy: float | None
    intact_accuracy: float
