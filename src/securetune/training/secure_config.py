"""`SecureSFTConfig`: TRL's `SFTConfig` and what the secure methods need."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import SFTConfig

from securetune.artifacts import RobustModules
from securetune.config import TrainingSettings
from securetune.config.checking import validate
from securetune.config.presets import PRESETS
from securetune.defenses import find_defense
from securetune.errors import ConfigError

AUTO = "auto"
"""Value of `robust_modules`: analyze the model and search first."""


@dataclass
class SecureSFTConfig(SFTConfig):
    """Everything of TRL's `SFTConfig`, and how to tune without losing the model's safety.

    Source: arXiv 2410.04524 (ML-LR in v1, SWAT in v2); the defaults are those of `securetune.config.TrainingSettings`,
    which give their reasons.

    Attributes:
        method: `swat` (default), `ml-lr`, `ift` (plain fine-tuning) or any other registered method.
        robust_modules: Mods_Rob: the path of a manifest that `securetune search` wrote, a `RobustModules`, a list of
            paths as `named_modules()` gives them (`model.layers.2.mlp.up_proj`), or `auto`: analyze and search before
            training, with the built-in probe prompts, which takes minutes. Not needed by `ift`.
        method_options: Settings of the method's own, such as `{"energy": 0.9}` of `protected-subspace`. None: its
            defaults.
        learning_rate_ratio: `ml-lr` only, in [0, 1]: rate of all other modules over `learning_rate`. Default 0.1; 0
            freezes them, 1 is plain fine-tuning.
        warmup_phase_steps: `swat` only: optimizer steps (≥ 0) of the phase that trains the robust modules alone. 0 is
            plain fine-tuning. None: half as many as the main phase has, or what `warmup_phase_epochs` says.
        warmup_phase_epochs: `swat` only: the same in passes over the data (> 0), instead of steps.
        warmup_phase_learning_rate: `swat` only: peak rate of that phase (> 0). None: `learning_rate`.
        other_parameters: Where embeddings, norms and the head belong if they train: `rest` (default; slow in `ml-lr`,
            frozen in the warm-up), `robust`, or `frozen` in every phase.
        probe_harmful: Harmful prompts for `auto` and for the refusal probe: a file or data set, as `securetune analyze
            --harmful` takes it. None: the built-in ones.
        probe_harmless: The same for harmless prompts; both or neither must be given.
        refusal_probe_steps: Optimizer steps between two looks at refusals while training, in every phase: harmful and
            harmless prompts are answered, and the shares refused are logged. 0 (default): never, since it takes
            time.
        refusal_probe_prompts: Prompts of each kind (≥ 1). Default 16: enough to see refusals go, not to measure them.
        refusal_probe_stop_below: End the phase if the refusal rate falls below this, in [0, 1]. None: never.
        log_update_norms: Log with every loss how far each group has moved, as a norm relative to its weights. It needs
            a copy in CPU memory of all that trains. None: on for adapters, which are small.

    Raises:
        ConfigError: With all mistakes in these settings together.

    Example:
        >>> SecureSFTConfig("tuned", method="ml-lr", robust_modules=["model.layers.2.mlp.up_proj"]).learning_rate_ratio
        0.1
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "method_options"]  # noqa: RUF012  (no field; as in TRL)

    method: str = field(default="swat", metadata={"help": "ift, ml-lr, swat or another registered method."})
    method_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of the method's own, such as energy of protected-subspace."}
    )
    # In this order, transformers' parser of command lines takes one or more names; `__post_init__` tells them apart.
    robust_modules: list[str] | None | str | tuple[str, ...] | Path | RobustModules = field(  # noqa: RUF036
        default=None, metadata={"help": "Manifest, list of module paths, or auto (analyze and search first)."}
    )
    learning_rate_ratio: float = field(
        default=0.1, metadata={"help": "ml-lr: learning rate of the other modules over learning_rate, in [0, 1]."}
    )
    warmup_phase_steps: int | None = field(
        default=None, metadata={"help": "swat: optimizer steps on the robust modules alone; default: half as many."}
    )
    warmup_phase_epochs: float | None = field(
        default=None, metadata={"help": "swat: the same in passes over the data."}
    )
    warmup_phase_learning_rate: float | None = field(
        default=None, metadata={"help": "swat: peak learning rate of that phase; default: learning_rate."}
    )
    other_parameters: str = field(
        default="rest", metadata={"help": "Embeddings, norms and head: rest, robust or frozen."}
    )
    probe_harmful: str | None = field(default=None, metadata={"help": "Harmful prompts for auto and refusal probe."})
    probe_harmless: str | None = field(default=None, metadata={"help": "Harmless prompts for auto and refusal probe."})
    refusal_probe_steps: int = field(
        default=0, metadata={"help": "Steps between two looks at refusals while training; 0: never."}
    )
    refusal_probe_prompts: int = field(default=16, metadata={"help": "Prompts of each kind in the refusal probe."})
    refusal_probe_stop_below: float | None = field(
        default=None, metadata={"help": "End the phase if the refusal rate falls below this share."}
    )
    log_update_norms: bool | None = field(
        default=None, metadata={"help": "Log how far each group has moved; default: for adapters only."}
    )

    def __post_init__(self) -> None:
        """Check these settings, before a model is loaded."""
        super().__post_init__()
        self.robust_modules = _named_alone(self.robust_modules)
        problems = []
        if self.method in PRESETS:
            inner = PRESETS[self.method].training["method"]
            raise ConfigError(
                f'method: "{self.method}" is a preset, part of which prepares the data, and a trainer takes those as '
                f'they are. Use `securetune train --method {self.method}`; or give method="{inner}" here, and prepare '
                "the data with `securetune.prepare_data`."
            )
        try:
            self.secure_settings()
        except ConfigError as error:
            problems += error.problems
        try:
            needs_modules = find_defense(self.method, self.own_options()).needs_manifest
        except ConfigError as error:
            problems += error.problems
        else:
            if needs_modules and self.robust_modules is None:
                problems.append(
                    f'robust_modules is needed by method "{self.method}": a manifest of `securetune search`, a list of '
                    f'module paths, or "{AUTO}"'
                )
        if isinstance(self.robust_modules, list | tuple) and not self.robust_modules:
            problems.append("robust_modules must name at least one module; got an empty list")
        if self.warmup_phase_steps is not None and self.warmup_phase_epochs is not None:
            problems.append("warmup_phase_steps and warmup_phase_epochs say the same; give one of them")
        if self.warmup_phase_epochs is not None and not self.warmup_phase_epochs > 0:
            problems.append(f"warmup_phase_epochs must be above 0; got {self.warmup_phase_epochs}")
        problems += self._probe_problems()
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))

    def _probe_problems(self) -> list[str]:
        problems = []
        if bool(self.probe_harmful) != bool(self.probe_harmless):
            problems.append("probe_harmful and probe_harmless must be given together")
        if self.refusal_probe_steps < 0:
            problems.append(f"refusal_probe_steps must be at least 0; got {self.refusal_probe_steps}")
        if self.refusal_probe_prompts < 1:
            problems.append(f"refusal_probe_prompts must be at least 1; got {self.refusal_probe_prompts}")
        if self.refusal_probe_stop_below is not None and not 0 <= self.refusal_probe_stop_below <= 1:
            problems.append(f"refusal_probe_stop_below must be in [0, 1]; got {self.refusal_probe_stop_below}")
        if self.refusal_probe_stop_below is not None and self.refusal_probe_steps == 0:
            problems.append("refusal_probe_stop_below needs refusal_probe_steps, the steps between two probes")
        return problems

    def secure_settings(self) -> TrainingSettings:
        """Return the settings that defenses know, as far as they are known before the model.

        Raises:
            ConfigError: If one is out of its range.
        """
        return validate(
            TrainingSettings,
            {
                "method": self.method,
                "method_options": self.own_options(),
                "learning_rate": self.learning_rate,
                "learning_rate_ratio": self.learning_rate_ratio,
                "warmup_phase_steps": self.warmup_phase_steps,
                "warmup_phase_learning_rate": self.warmup_phase_learning_rate,
                "other_parameters": self.other_parameters,
                "weight_decay": self.weight_decay,
                "seed": self.seed,
            },
        )

    def own_options(self) -> dict[str, Any]:
        """Return the method's own settings.

        Raises:
            ConfigError: If they are a text that is no JSON object.
        """
        if isinstance(self.method_options, str):
            raise ConfigError(
                f'method_options must be an object such as {{"energy": 0.9}}; got {self.method_options!r}'
            )
        return self.method_options or {}

    def to_dict(self) -> dict[str, Any]:
        """Return all settings in a form that can be written as JSON."""
        found: dict[str, Any] = super().to_dict()
        if isinstance(self.robust_modules, RobustModules):
            found["robust_modules"] = [module.name for module in self.robust_modules.modules]
        elif isinstance(self.robust_modules, Path):
            found["robust_modules"] = str(self.robust_modules)
        return found


def _named_alone(choice: Any) -> Any:
    """Return what a list of one names, if that is no module: on a command line, all names are a list."""
    if not isinstance(choice, list) or len(choice) != 1 or not isinstance(choice[0], str):
        return choice
    (name,) = choice
    return name if name == AUTO or name.endswith(".json") or Path(name).is_file() else choice
