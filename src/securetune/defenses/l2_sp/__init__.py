"""L2-SP (arXiv 1802.01483): a pull towards the start weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from securetune.config import Settings
from securetune.defenses.base import Defense, DefenseContext
from securetune.defenses.registry import register_defense
from securetune.errors import ConfigError


class StartPointOptions(Settings):
    """Options of `l2-sp`.

    Attributes:
        strength: Share of the way back to the start weights a step and unit of learning rate (≥ 0); 0 is plain
            fine-tuning. 100: at a rate of 5e-4 a twentieth of the distance each step.
    """

    strength: Annotated[float, Field(ge=0.0)] = 100.0


@register_defense("l2-sp")
class StartPoint(Defense):
    """L2-SP: after each step every weight is pulled towards where it started.

    The paper adds strength/2·‖W − W₀‖² to the loss. Ours is decoupled, as AdamW's weight decay is from L2: W ← W −
    rate·strength·(W − W₀) after the optimizer's step, because Adam would divide the penalty's gradient by its own
    scale, and clipping would trade it against the data's. It needs a copy of all that trains. There are no new
    layers, for which the paper has a strength of their own.
    """

    source = "arXiv 1802.01483"
    options_type: ClassVar[type[Settings]] = StartPointOptions

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._start: dict[Tensor, Tensor] = {}

    @property
    def strength(self) -> float:
        """The option."""
        assert isinstance(self.options, StartPointOptions)
        return self.options.strength

    def before_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Keep the start weights of all that may train."""
        if self.strength > 0:
            names = set(context.parameters.all)
            named = model.named_parameters()
            self._start = {weight: weight.detach().clone() for name, weight in named if name in names}

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Pull; a pull of more than the whole distance stops at the start weights."""
        if self.strength == 0:
            return
        for group in optimizer.param_groups:
            share = min(1.0, group["lr"] * self.strength)
            for weight in group["params"]:
                if weight not in self._start:
                    raise ConfigError("l2-sp needs whole weights in each process; they are sharded. Use DDP.")
                weight.lerp_(self._start[weight], share)
