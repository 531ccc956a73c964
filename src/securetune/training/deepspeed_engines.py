"""DeepSpeed in a training of several phases: one engine a phase, on the same model.

DeepSpeed's engine hangs hooks on the parameters (ZeRO-2) or the modules (ZeRO-3) that it trains, and holds the values
in buffers of its own. A second engine finds the model as the first leaves it, once that one has let go of it.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from transformers import Trainer

from securetune.defenses import Defense
from securetune.errors import ConfigError


def require_phases_fit(accelerator: Accelerator, defense: Defense, analyzes: bool) -> None:
    """Refuse what DeepSpeed would do otherwise than the method says, most of it without a word.

    Args:
        accelerator: The trainer's.
        defense: The method.
        analyzes: Whether the model is to be analyzed first.

    Raises:
        ConfigError: If DeepSpeed is to make the optimizer or the schedule itself, which then know of no groups; if the
            method acts on weights after a step; or if weights that are divided already are to be analyzed.
    """
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None:
        return
    problems = [
        f'the DeepSpeed configuration has a "{part}": DeepSpeed would make it, without the groups of method '
        f'"{defense.name}". Take it out; the training arguments say the same.'
        for part in ("optimizer", "scheduler")
        if part in plugin.deepspeed_config
    ]
    if type(defense).after_step is not Defense.after_step:
        problems.append(
            f'method "{defense.name}" changes weights after each step, which DeepSpeed overwrites with copies of its '
            "own. Use DDP."
        )
    if analyzes and plugin.zero_stage == 3:
        problems.append(
            'robust_modules "auto" needs whole weights in one process, and ZeRO-3 divides them. Run `securetune '
            "analyze` and `search` first, and give the manifest."
        )
    if problems:
        raise ConfigError(problems)


def require_new_engine(trainer: Trainer) -> None:
    """Refuse to train once more with a trainer whose engine still holds the model.

    Raises:
        ConfigError: If it does.
    """
    if trainer.is_deepspeed_enabled and trainer.deepspeed is not None:
        raise ConfigError("train() was called before, and DeepSpeed's engine holds the model. Make a new trainer.")


def release_engine(trainer: Any) -> None:
    """Have the engine of a phase that is over take its hooks off the model."""
    if trainer.is_deepspeed_enabled:
        trainer.deepspeed.destroy()
