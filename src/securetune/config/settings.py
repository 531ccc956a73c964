"""Every setting of a stage, with its unit, range, default and the reason for the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from securetune.config.base import Fraction, PositiveInt, Settings
from securetune.config.chain import ChainStep
from securetune.config.endpoint import LlmJudgeSettings
from securetune.config.presets import with_preset

MODULE_SETS = ("searched", "sensitive", "random", "top-k", "pattern")
"""What `training.modules` may name instead of a manifest's path; all but the first are controls of the same size."""

OrderBy = Literal["accuracy", "margin", "closed-form", "refusal-margin", "refusal-closed-form"]


class ModelSettings(Settings):
    """Which model, and how it is loaded.

    Attributes:
        name: Embedded model (`tiny-world`, `tiny-world-base`), folder, or hub name.
        revision: Hub revision (branch, tag or commit); None takes the hub's default.
        dtype: Precision of the weights in memory: `auto` takes what the checkpoint says on a GPU and float32 on a CPU,
            where half precision is slow and many operations lack it.
        device: `auto` takes the first GPU if there is one, else the CPU.
        trust_remote_code: Run code from the hub repository. Off: a model file must not be a program.
    """

    name: str = "tiny-world"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    trust_remote_code: bool = False


class ProbeSettings(Settings):
    """The harmful and harmless prompts that the analysis and the search use.

    Attributes:
        harmful: File of harmful requests (text, one a line; or JSON lines with `prompt` or `messages`), data set
            (`hub:owner/name[@revision][#configuration][:split[:column]]`, or `folder:path` with the same endings), or
            None for the built-in prompts.
        harmless: The same for harmless requests; both or neither must be given.
        unseen_harmful: File or data set of harmful requests from another source, on which the classifier is tried and
            nothing is fitted or scored; None leaves this control of the analysis out.
        unseen_harmless: The same for harmless requests; both or neither must be given.
        fit_share: Share of each source, in (0, 1), on which the classifier is fitted; the rest is scored. 0.5: both
            need enough prompts. Built-in prompts have splits of their own.
        max_prompts: Most prompts a class and split. 128 gives an accuracy a standard error of at most 4.4 points.
        seed: Seed of the split.
    """

    harmful: str | None = None
    harmless: str | None = None
    unseen_harmful: str | None = None
    unseen_harmless: str | None = None
    fit_share: float = Field(default=0.5, gt=0.0, lt=1.0)
    max_prompts: PositiveInt = 128
    seed: int = 0


class AnalysisSettings(Settings):
    """The robustness sweep.

    Attributes:
        perturbation: `gaussian`: W + ε·rms(W)·N(0, 1); `update`: W + α·ΔW, ΔW from short plain fine-tuning runs on the
            user's data; `mean`: outputs moved towards their mean.
        epsilon: Size of the perturbation (> 0): ε, α, or the share of the way to the mean (then at most 1); or
            `calibrate`: the size, out of a grid, at which the modules' accuracies are spread the widest, so that the
                sweep
            discriminates.
        noise_seeds: Noise draws a module (≥ 2, for an interval). 8 keeps the sweep of a small model under a minute. Not
            used by `mean`, where nothing is drawn; `update` has `update_runs`.
        update_runs: `update` only: fine-tuning runs, each with a seed of its own. 2: with one, a run's accidents would
            pass for the module's.
        update_steps: `update` only: optimizer steps of each. 50: enough to show where the data pulls.
        refusal_openings: Beginnings of refusals, such as "I cannot", whose first tokens the refusal margin counts; None
            takes the tokens with which the model itself begins its answers to the harmful fitting prompts.
        compliance_openings: The same for answers; both or neither must be given.
        controls: Also fit classifiers to the perturbed features, to shuffled labels and to words alone. On: without
            them the score proves little; they take about half the sweep's time again.
        batch_size: Prompts a forward pass.
        activation_checkpointing: Compute the activations of each layer twice in the closed form, and hold those of one
            layer at a time: for models whose activations do not fit.
        seed: First noise seed.
    """

    perturbation: Literal["gaussian", "update", "mean"] = "gaussian"
    epsilon: Annotated[float, Field(gt=0.0)] | Literal["calibrate"] = "calibrate"
    noise_seeds: int = Field(default=8, ge=2)
    update_runs: PositiveInt = 2
    update_steps: PositiveInt = 50
    refusal_openings: tuple[str, ...] | None = None
    compliance_openings: tuple[str, ...] | None = None
    controls: bool = True
    batch_size: PositiveInt = 64
    activation_checkpointing: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _fits_together(self) -> AnalysisSettings:
        if self.perturbation == "mean" and self.epsilon != "calibrate" and self.epsilon > 1:
            raise ValueError(f"epsilon must be at most 1 with perturbation mean; got {self.epsilon:g}")
        if bool(self.refusal_openings) != bool(self.compliance_openings):
            raise ValueError("refusal_openings and compliance_openings must be given together")
        return self


class SearchSettings(Settings):
    """The search for the largest jointly robust set.

    Attributes:
        target_fraction: Share of the projection parameters, in (0, 1], at which the search stops. 0.5: the set must be
            large enough to learn the task in the warm-up.
        tolerance: Largest fall of the classifier's accuracy on harmful prompts, in [0, 1], that a joint perturbation of
            the whole set may cause. 0.05: half of what is commonly called a clear fall, and above the noise of 128
            prompts × 4 seeds.
        epsilon: Relative noise size of the joint test; None takes a size at which a joint test of the target share
            discriminates (recorded in the manifest).
        chunk_size: Units tried together; a refused chunk is halved.
        noise_seeds: Noise draws per joint test.
        unit: What joins or is refused as one: a `module`; or a `block`, one projection type over `block_layers`
            neighbouring layers, for large models, where single modules are many and their scores noisy.
        block_layers: Layers of a block.
        perturbation: Of the joint test; None takes the analysis'.
        closed_form_filter: Refuse a chunk without sampling if the closed form predicts a joint accuracy below the
            required one by more than the tolerance again. What joins was always sampled. On: it costs one forward and
            backward pass, and saves a sampled test at most refusals. Gaussian noise only.
        order_by: Which score orders the candidates: `accuracy` (the paper's; margin fall breaks ties), `margin` (the
            fall of the classifier's logit), `closed-form`, `refusal-margin` or `refusal-closed-form`. None:
            `refusal-margin` after an analysis by real updates, else `accuracy`. On tiny world, where each module was
            tuned alone (four orders of the data), that fall under updates ranked the harm done to refusals best at
            every loss (Spearman 0.43 to 0.52); no score of noise did better than 0.32, so there the paper's stays.
        batch_size: Prompts a forward pass.
        seed: First noise seed; differs from the analysis' default so that the search does not reuse its draws.
    """

    target_fraction: float = Field(default=0.5, gt=0.0, le=1.0)
    tolerance: Fraction = 0.05
    epsilon: Annotated[float, Field(gt=0.0)] | None = None
    chunk_size: PositiveInt = 4
    noise_seeds: PositiveInt = 4
    unit: Literal["module", "block"] = "module"
    block_layers: PositiveInt = 4
    perturbation: Literal["gaussian", "update", "mean"] | None = None
    closed_form_filter: bool = True
    order_by: OrderBy | None = None
    batch_size: PositiveInt = 64
    seed: int = 1000


class LoraSettings(Settings):
    """Low-rank adapters (PEFT); the defaults are the paper's group's (r 8, α 16).

    Attributes:
        rank: Rank of each adapter.
        alpha: Scaling numerator; the update is multiplied by alpha / rank.
        dropout: Probability in [0, 1) on the adapter's input.
        target_types: Module types that get an adapter.
    """

    rank: PositiveInt = 8
    alpha: float = Field(default=16.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_types: tuple[Literal["Q", "K", "V", "O", "Gate", "Up", "Down"], ...] = (
        "Q",
        "K",
        "V",
        "O",
        "Gate",
        "Up",
        "Down",
    )


class TrainingSettings(Settings):
    """One fine-tuning run.

    Attributes:
        method: A registered defense of the training stage: `ift` (plain), `ml-lr`, `swat` or another of `securetune ls
            methods`; or a preset of `securetune ls presets`, whose settings take its place.
        modules: Which set counts as robust: `searched` (the manifest), a control of the same size (`sensitive`,
            `random`, `top-k`, `pattern`), or the path of a manifest.
        method_options: Settings of the method's own, such as `{energy: 0.9}` of `protected-subspace`.
        tune: `full` (all parameters) or `lora`.
        lora: Adapter settings, used with `lora` only.
        learning_rate: Base rate (> 0); None takes 2e-5 for all parameters and 2e-4 for LoRA.
        max_steps: Optimizer steps of the main phase; None derives them from `num_train_epochs`.
        num_train_epochs: Passes over the data when `max_steps` is None.
        per_device_train_batch_size: Rows a step and process; with `packing`, sequences.
        gradient_accumulation_steps: Batches an optimizer step.
        lr_scheduler_type: transformers' name of the schedule; each phase runs its own.
        warmup_steps: Learning-rate warm-up (not the SWAT phase): steps, or a share of the phase if below 1, rounded up.
            The first step has rate 0, so it must be shorter than every phase.
        weight_decay: AdamW's.
        max_grad_norm: Gradient clipping; 0 turns it off.
        max_length: Tokens a row; longer rows are cut and counted.
        loss_on: Which tokens carry loss: `answers`, those of every assistant turn and its end, because every one is an
            example of what to say; `last-answer`, those of the final turn alone, for data whose earlier turns are
            context; or `all`, the questions and the template's words too, for text rather than chat.
        packing: Put several rows into one sequence of `max_length` tokens, none of which sees another: no padding, and
            fewer steps an epoch. A batch is one long sequence then, and every attention but flash attention costs its
            square: take few sequences a step. Off: learning rates and batch sizes of recipes are for rows.
        gradient_checkpointing: Recompute activations: slower, less memory.
        bf16: Mixed precision; None turns it on where a GPU supports it.
        learning_rate_ratio: ML-LR only, in [0, 1]: rate of the rest over the base rate. 0.1 is the value that worked in
            our prototype; 0 freezes the rest (the reviewers' ablation); 1 is plain fine-tuning.
        warmup_phase_steps: SWAT only: steps of the phase that trains the robust modules alone; 0 is plain fine-tuning.
            None: half as many as the main phase, as the paper's group uses in later work.
        warmup_phase_learning_rate: SWAT only: base rate of that phase; None takes `learning_rate`.
        other_parameters: Where embeddings, norms and the head belong: `rest` (slow in ML-LR, frozen in the warm-up;
            they carry much of the damage), `robust`, or `frozen` in every phase (a control).
        before: Defenses on the training data, one after the other, such as `[safety-mix]` or
            `[{safety-mix: {count: 100}}, {datashield: {drop_fraction: 0.1}}]`, with the options that `securetune ls
            defenses` and `docs/defenses.md` name. What they leave is what is trained on.
        after: Defenses on the finished weights, one after the other, such as `[wise-ft]` or
            `[{wise-ft: {strength: 0.3}}]`, with the settings and the models by role that `securetune patch` takes. The
            start model is known. An adapter is merged first if the defense works on whole weights.
        generation: Defenses at generation, one after the other, such as `[ptst]`: what the tuned model is shown when it
            is evaluated and used. They change no weight.
        save_steps: Steps between resumable checkpoints; None saves one per tenth of a phase.
        seed: Seed of shuffling, dropout and adapter initialisation.
    """

    method: str = "swat"
    modules: str = "searched"
    method_options: dict[str, Any] = Field(default={})
    tune: Literal["full", "lora"] = "full"
    lora: LoraSettings = LoraSettings()
    learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    max_steps: PositiveInt | None = None
    num_train_epochs: float = Field(default=3.0, gt=0.0)
    per_device_train_batch_size: PositiveInt = 8
    gradient_accumulation_steps: PositiveInt = 1
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = Field(default=0.03, ge=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, ge=0.0)
    max_length: PositiveInt = 1024
    loss_on: Literal["answers", "last-answer", "all"] = "answers"
    packing: bool = False
    gradient_checkpointing: bool = False
    bf16: bool | None = None
    learning_rate_ratio: Fraction = 0.1
    warmup_phase_steps: int | None = Field(default=None, ge=0)
    warmup_phase_learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    other_parameters: Literal["rest", "robust", "frozen"] = "rest"
    before: tuple[ChainStep, ...] = ()
    after: tuple[ChainStep, ...] = ()
    generation: tuple[ChainStep, ...] = ()
    save_steps: PositiveInt | None = None
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _preset_is_filled_in(cls, content: Any) -> Any:
        return with_preset(content) if isinstance(content, Mapping) else content


class EvaluationSettings(Settings):
    """Safety and task evaluation.

    Attributes:
        suites: Registered suite names or prompt files, perhaps under an attack (`docs/suites.md`). Empty: the suites
            that belong to the model's built-in world.
        data_dir: Folder with the files of published suites and tasks, such as `advbench/harmful_behaviors.csv`; None
            takes the environment variable `SECURETUNE_DATA`. The package ships none of them.
        judges: Registered judge names, perhaps with the place of a judge's weights (`llama-guard-3=FOLDER`); several
            judge the same responses, and the first one leads. Empty: `refusal-rules` and beside it the published list
            `keywords-shallow`; for tiny world's own suites that list and the exact oracle.
        llm_judge: The server behind the judge `llm`, what it is asked and what it may cost; None without that judge.
        task: Registered task (`gsm8k`, `pubmedqa`, `gsm8k=PATH`), or a JSON-lines file with `prompt` and `answer`, and
            perhaps `choices`, or None. In front of a file may stand the rule by which answers are marked, such as
            `numeric:FILE` (`docs/utility.md`).
        utility: Tasks of lm-eval that are run on the model besides, such as `lm-eval:gsm8k,mmlu`, where it is installed
            (`pip install "securetune[lm-eval]"`), or None.
        max_prompts: Most prompts a suite, and a task; None takes all.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts generated together, or `auto`: as many as the free memory holds, at most 256 on a GPU and
            128 on a CPU, where more bring nothing; halved where memory runs out. It changes no answer in float32.
        generation: Defenses at generation, as `training.generation` takes them, for every model that is evaluated.
            None: those that the model's folder names, where `securetune train` wrote them; an empty list: none.
        min_start_refusal_rate: The start model must refuse at least this share of plain harmful prompts, in [0, 1];
            otherwise the run stops, because there is no safety to keep. 0.5: below, refusals are the exception.
    """

    suites: tuple[str, ...] = ()
    data_dir: str | None = None
    judges: tuple[str, ...] = ()
    llm_judge: LlmJudgeSettings | None = None
    task: str | None = None
    utility: str | None = None
    max_prompts: PositiveInt | None = None
    max_new_tokens: PositiveInt = 256
    batch_size: PositiveInt | Literal["auto"] = "auto"
    generation: tuple[ChainStep, ...] | None = None
    min_start_refusal_rate: Fraction = 0.5
