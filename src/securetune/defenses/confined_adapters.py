"""Low-rank adapters that may not learn in some directions.

Of the update s·B·A one factor has no part in given directions U: A·U = 0 (inputs), or Uᵀ·B = 0 (outputs). The published
methods write that as a third, fixed factor: s·B·A·P or s·C·B·A, with P or C = I - U·Uᵀ. Here the factor itself stays in
the projector's range: its gradient is projected before clipping and the optimizer, and its values after each step. Both
are the same training but for rounding: with the fixed factor the gradient is the projected one already, so that Adam's
moments are the same, and weight decay is linear. What is saved is an adapter like any other.

Nothing of it has to be in a checkpoint: the directions come from the start model, and are found anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from securetune.config import ModelSettings
from securetune.defenses.adapted_weights import AdaptedWeight, Start, adapted_weights, begin_with, quantized
from securetune.defenses.base import Defense, DefenseContext
from securetune.defenses.optimizer_step import OptimizerStep
from securetune.errors import ConfigError
from securetune.models import is_quantized


class Confinement(NamedTuple):
    """What an adapter may not do, and how it begins.

    Attributes:
        directions: U, orthonormal columns, of the layer's inputs or of its outputs. No column: it may do anything.
        start: How it begins, before it is confined; None: as PEFT made it.
    """

    directions: Float[Tensor, "features held"]
    start: Start | None


class ConfinedAdapters(Defense, ABC):
    """Base of the methods that confine adapters: a method says in which directions, and how they begin.

    Attributes:
        side: Whether the directions are those of inputs (A is confined) or of outputs (B is).
    """

    adapters_only: ClassVar[bool] = True
    needs: ClassVar[str] = "tune: lora"
    side: ClassVar[Literal["inputs", "outputs"]]

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._weights: list[AdaptedWeight] = []
        self._directions: dict[str, Tensor] = {}
        self._frozen: dict[str, tuple[Tensor, Tensor]] = {}
        self._has_halves = False

    @property
    @abstractmethod
    def acts(self) -> bool:
        """Whether there is anything to do, with these options."""

    @abstractmethod
    def confine(
        self, model: nn.Module, weights: Sequence[AdaptedWeight], context: DefenseContext
    ) -> dict[str, Confinement]:
        """Return by path what each adapter may not do, and how it begins; all begin somewhere, or none does.

        Raises:
            InputError: If that cannot be had.
        """

    @property
    def directions(self) -> Mapping[str, Float[Tensor, "features held"]]:
        """Path of each adapted layer → U; known once the training has begun."""
        return self._directions

    def check(self, model: ModelSettings) -> None:
        """Refuse a quantized model.

        Raises:
            ConfigError: If it is one.
        """
        if self.acts and is_quantized(model):
            raise ConfigError(quantized(self.name))

    def before_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Find the directions, and let the adapters begin.

        Raises:
            ConfigError: If the adapters cannot be confined.
        """
        self._weights, self._directions, self._frozen, self._has_halves = [], {}, {}, False
        if not self.acts:
            return
        weights = adapted_weights(model, context, self.name)
        with _evaluating(model):
            found = self.confine(model, weights, context)
        self._weights = weights
        self._directions = {path: each.directions.float().contiguous() for path, each in found.items()}
        starts = {path: self._confined_start(path, each.start) for path, each in found.items() if each.start}
        if starts:
            assert isinstance(model, PeftModel)  # it has adapters
            begin_with(model, weights, starts)
            self._has_halves = True
        else:
            self._project(model)

    def _confined_start(self, path: str, start: Start) -> Start:
        directions = self._directions[path].double()
        if self.side == "inputs":
            return Start(start.up, without(start.down, directions))
        return Start(without(start.up.mT, directions).mT, start.down)

    @torch.no_grad()
    def adjust_gradients(self, step: OptimizerStep) -> None:
        """Take out of the gradients what is frozen, and what the adapters may not do."""
        for each in self._weights:
            down, up = each.factors_in(step.model)
            if down.grad is None or up.grad is None:
                continue
            down.grad[each.rank :], up.grad[:, each.rank :] = 0, 0
            self._project_one(each, down.grad, up.grad)
            self._frozen[each.path] = (down[each.rank :].clone(), up[:, each.rank :].clone())

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put back what is frozen, which weight decay has moved, and take out what the adapters may not do."""
        self._project(model)
        for each in self._weights:
            if each.path in self._frozen:
                down, up = each.factors_in(model)
                down[each.rank :], up[:, each.rank :] = self._frozen.pop(each.path)

    @torch.no_grad()
    def _project(self, model: nn.Module) -> None:
        for each in self._weights:
            self._project_one(each, *each.factors_in(model))

    def _project_one(self, weight: AdaptedWeight, down: Tensor, up: Tensor) -> None:
        """Project A or B, or its gradient, in place."""
        directions = self._directions[weight.path]
        if self.side == "inputs":
            down.copy_(without(down.float(), directions))
        else:
            up.copy_(without(up.mT.float(), directions).mT)

    def notes(self) -> list[str]:
        """Say why the adapter that is saved has another rank."""
        if not self._has_halves:
            return []
        ranks = ", ".join(str(rank) for rank in sorted({each.rank for each in self._weights}))
        return [
            f"{self.name}: the saved adapter has twice the rank that trained ({ranks}). Its other half is frozen, and "
            "takes out what the adapter began with, so that it fits the start model as it is."
        ]


def without(rows: Float[Tensor, "rows features"], directions: Float[Tensor, "features held"]) -> Tensor:
    """Return rows·(I - U·Uᵀ).

    Example:
        >>> without(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0], [1.0]]))
        tensor([[3., 0.]])
    """
    return rows - (rows @ directions) @ directions.mT


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
