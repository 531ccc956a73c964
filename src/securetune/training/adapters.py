"""Low-rank adapters on the chosen projection types."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, set_seed

from securetune.config import TrainingSettings
from securetune.errors import ConfigError
from securetune.models import ProjectionModule


def add_adapters(
    model: PreTrainedModel, modules: Sequence[ProjectionModule], settings: TrainingSettings, base_name: str
) -> PeftModel:
    """Wrap a model with LoRA adapters; everything else is frozen.

    Args:
        model: The start model.
        modules: Its projections.
        settings: For `lora` and for the seed of the adapters' first values.
        base_name: Written into the adapter as the name of its start model.

    Raises:
        ConfigError: If experts are to get adapters.
    """
    config = lora_config(model, modules, settings)
    set_seed(settings.seed)
    model.name_or_path = base_name
    with warnings.catch_warnings():
        # PEFT asks for `is_gradient_checkpointing`, a name that transformers has renamed; no user can do anything.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def lora_config(model: nn.Module, modules: Sequence[ProjectionModule], settings: TrainingSettings) -> LoraConfig:
    """Return PEFT's configuration for adapters on those of the modules whose type is to get one.

    Args:
        model: The start model, of which only the names are read.
        modules: Projections of it, all or some.
        settings: For `lora`.

    Raises:
        ConfigError: If experts are to get adapters.
    """
    chosen = [module for module in modules if module.type in settings.lora.target_types]
    if any(module.of_experts for module in chosen):
        raise ConfigError(
            "lora.target_types: the experts of this model are no linear maps, and adapters for them are not supported. "
            'Use Q, K, V and O, or tune: "full".'
        )
    targets = list(dict.fromkeys(module.path for module in chosen))
    return LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank; any number will do
        lora_dropout=settings.lora.dropout,
        target_modules=_short_targets(model, targets),
        fan_in_fan_out=any(module.part.transposed for module in chosen),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _short_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return last names such as `q_proj`, which every tool understands, if they mean just the targets; else paths."""
    short = sorted({target.rpartition(".")[2] for target in targets})
    meant = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in short}
    return short if meant == set(targets) else list(targets)


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model inside a PEFT wrapper, or the model itself."""
    if not isinstance(model, PeftModel):
        return model
    inner = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    return inner
