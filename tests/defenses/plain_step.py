"""An optimizer step without a trainer, and rows of tokens for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

ROWS = [[2, 4, 11, 9, 5, 20], [2, 4, 12, 8, 5, 21], [2, 4, 7, 6, 5, 22]]


class PlainStep:
    """An optimizer step without a trainer: batches are given, and gradients are torch's."""

    def __init__(self, model: nn.Module, number: int = 0, user: Sequence[Tensor] = ()) -> None:
        self.model, self.number, self.batches_per_step = model, number, 1
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self._user = user
        self.logged: dict[str, float] = {}

    def user_losses(self) -> list[Any]:
        return [lambda ids=ids: self.model(input_ids=ids, labels=ids).loss for ids in self._user]

    def alignment_batch(self, name: str, index: int) -> dict[str, Tensor]:
        ids = torch.tensor(ROWS)[torch.arange(3) - int(name == "compliance")]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}

    def take_alignment_step(self, name: str, index: int) -> float:
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.mul_(0.9)
        return 1.0

    def gradients(self, loss: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(loss, list(of), allow_unused=True)
        return [torch.zeros_like(x) if value is None else value for x, value in zip(of, found, strict=True)]

    def averaged(self, values: Sequence[Tensor]) -> list[Tensor]:
        return list(values)

    def autocast(self) -> Any:
        return nullcontext()

    def log(self, name: str, value: float) -> None:
        self.logged[name] = value
