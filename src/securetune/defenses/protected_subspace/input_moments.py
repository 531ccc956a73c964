"""The directions in which conversations enter each projection: leading eigenvectors of their second moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def second_moments(
    model: nn.Module, holders: Mapping[str, nn.Module], rows: Sequence[Sequence[int]], batch_size: int
) -> dict[str, Float[Tensor, "_in _in"]]:
    """Return the sum of x·xᵀ over all tokens x that enter each submodule, in float32.

    Submodules that are given the very same tensor (Q, K and V; Gate and Up) share one matrix. One forward pass over the
    rows; the memory is one matrix of d_in² for each distinct input, and the activations of one batch.

    Args:
        model: The model, or what wraps it.
        holders: Name → submodule that is called with its input as the first argument.
        rows: Token ids of whole conversations.
        batch_size: Rows a forward pass.
    """
    recorder = _Recorder(holders)
    with recorder.listening():
        for batch, is_real in _batches(rows, batch_size, _device(model)):
            recorder.begin(is_real)
            _decoder(model)(input_ids=batch, use_cache=False)
    return {name: recorder.moments[recorder.owner[name]] for name in holders}


def _decoder(model: Any) -> Any:
    """Return the part below the head; PEFT's wrapper is seen through, its adapters are part of the layers."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert isinstance(inner, PreTrainedModel)
    return inner.get_decoder()


def _batches(rows: Sequence[Sequence[int]], batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Pad on the right, where in a causal model no real token sees it; the longest rows come first."""
    ordered = sorted(rows, key=len, reverse=True)
    for begin in range(0, len(ordered), batch_size):
        chunk = ordered[begin : begin + batch_size]
        width = len(chunk[0])
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in chunk], device=device)
        lengths = torch.tensor([len(row) for row in chunk], device=device)
        yield ids, torch.arange(width, device=device) < lengths[:, None]


class _Recorder:
    """Adds up second moments while a model runs.

    Attributes:
        moments: Name of the first submodule with an input → the sum.
        owner: Name of each submodule → the first one that is given the same tensor.
    """

    def __init__(self, holders: Mapping[str, nn.Module]) -> None:
        self._holders = holders
        self._seen: list[tuple[Tensor, str]] = []
        self._is_real = torch.empty(0, dtype=torch.bool)
        self.moments: dict[str, Tensor] = {}
        self.owner: dict[str, str] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record while the context lasts."""
        handles = [holder.register_forward_pre_hook(self._hook(name)) for name, holder in self._holders.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, is_real: Tensor) -> None:
        """Hear which tokens of the next batch count."""
        self._is_real = is_real
        self._seen = []

    def _hook(self, name: str) -> Any:
        def record(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._add(name, inputs[0])

        return record

    def _add(self, name: str, given: Tensor) -> None:
        same = next((other for tensor, other in reversed(self._seen) if tensor is given), None)
        self.owner.setdefault(name, same or name)
        if self.owner[name] != name:
            return
        self._seen = [*self._seen[-3:], (given, name)]  # inputs are shared within a block, not across the model
        tokens = given.reshape(-1, given.shape[-1])[self._is_real.flatten()].float()
        moment = tokens.T @ tokens
        if name in self.moments:
            self.moments[name] += moment
        else:
            self.moments[name] = moment


def leading_directions(moment: Float[Tensor, "_in _in"], energy: float) -> Float[Tensor, "_in rank"]:
    """Return the fewest leading eigenvectors that hold a share of the trace.

    Args:
        moment: Symmetric, positive semi-definite.
        energy: Share of the trace in [0, 1); 0 gives no direction.

    Example:
        >>> leading_directions(torch.diag(torch.tensor([1.0, 8.0, 1.0])), 0.5).abs().T
        tensor([[0., 1., 0.]])
    """
    values, vectors = torch.linalg.eigh(moment.double())
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = values.sum()
    if energy == 0 or total == 0:
        return vectors[:, :0].float()
    held = torch.cumsum(values, 0) / total
    rank = int(torch.searchsorted(held, energy).item()) + 1
    return vectors[:, :rank].float().contiguous()
