"""An optimizer step as a method sees it: what it may ask of whatever trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Batch = Mapping[str, Any]
"""Padded rows on the model's device: `input_ids`, `attention_mask` and `labels`."""


UserLoss = Callable[[], Tensor]
"""Runs the model on a batch and returns its part of the loss; the parts of a step add up to what is trained on."""


@runtime_checkable
class OptimizerStep(Protocol):
    """One optimizer step of a phase.

    Attributes:
        number: How many steps on the user's rows were taken before it in this phase.
        model: The model itself, without any wrapper of a distributed engine.
        optimizer: Its groups have the rates of this step.
        batches_per_step: How many batches an optimizer step has (gradient accumulation).
    """

    number: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches_per_step: int

    def user_losses(self) -> Sequence[UserLoss]:
        """Return a function for each of the user's batches of this step that computes its part of the loss."""

    def alignment_batch(self, name: str, index: int) -> Batch:
        """Return a batch of the method's own rows; each process has its own part of it.

        Args:
            name: As in `alignment_rows`.
            index: Which one, from 0; the rows come in an order that is drawn anew for each pass over them.
        """

    def take_alignment_step(self, name: str, index: int) -> float:
        """Take one optimizer step on the method's own rows, with as many batches as a step on the user's has.

        Args:
            name: As in `alignment_rows`.
            index: Which step on these rows it is, from 0.

        Returns:
            Its mean loss, in nats per token.
        """

    def gradients(self, loss: Float[Tensor, ""], of: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of a loss, averaged over processes; zeros where it does not depend on a tensor."""

    def averaged(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors averaged over processes."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute meanwhile in the precision of the training, also with a model that the trainer does not know."""

    def log(self, name: str, value: float) -> None:
        """Write a number into the training's log, averaged between two of its rows."""
