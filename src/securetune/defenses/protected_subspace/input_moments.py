"""What enters each projection: the second moments of its inputs over conversations, summed up in one pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from securetune.defenses.protected_subspace.spectrum import InputSpectrum, exact_spectrum


@runtime_checkable
class InputStatistics(Protocol):
    """What is kept of the tokens that enter a projection."""

    def add(self, tokens: Float[Tensor, "token _in"]) -> None:
        """Take in tokens, in float32."""

    def spectrum(self) -> InputSpectrum:
        """Return the leading directions of what was taken in."""


Statistics = TypeVar("Statistics", bound=InputStatistics)


_BLOCKS = 4
_BLOCKS_FROM = 256
"""Width from which the sum is taken in blocks; narrower products are too small to gain from it."""


class SecondMoment:
    """The sum of x·xᵀ in float32: width² values.

    It is symmetric, so only its upper blocks are summed up, ten of sixteen: the whole of it takes about as many
    multiplications as the forward pass itself.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum: Float[Tensor, "_in _in"] = torch.zeros(width, width, device=device)
        edges = [width * place // _BLOCKS for place in range(_BLOCKS + 1)] if width >= _BLOCKS_FROM else [0, width]
        self._blocks = list(itertools.pairwise(edges))

    def add(self, tokens: Float[Tensor, "token _in"]) -> None:
        """Take in tokens."""
        for begin, end in self._blocks:
            self._sum[begin:end, begin:].addmm_(tokens[:, begin:end].T, tokens[:, begin:])

    @property
    def moment(self) -> Float[Tensor, "_in _in"]:
        """The sum, whole."""
        for begin, end in self._blocks:
            self._sum[end:, begin:end] = self._sum[begin:end, end:].T
        return self._sum

    def spectrum(self) -> InputSpectrum:
        """Return all its eigenvectors."""
        return exact_spectrum(self.moment)


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
    found = gather_inputs(model, holders, rows, batch_size, SecondMoment)
    return {name: statistics.moment for name, statistics in found.items()}


@torch.no_grad()
def gather_inputs(
    model: nn.Module,
    holders: Mapping[str, nn.Module],
    rows: Sequence[Sequence[int]],
    batch_size: int,
    make: Callable[[int, torch.device], Statistics],
) -> dict[str, Statistics]:
    """Return what is kept of all tokens that enter each submodule; the same object where the input is the same tensor.

    Args:
        model: The model, or what wraps it.
        holders: Name → submodule that is called with its input as the first argument.
        rows: Token ids of whole conversations.
        batch_size: Rows a forward pass.
        make: Makes empty statistics of inputs of a width, on a device.
    """
    recorder = _Recorder(holders, make)
    with recorder.listening():
        for batch, is_real in _batches(rows, batch_size, next(model.parameters()).device):
            recorder.begin(is_real)
            _decoder(model)(input_ids=batch, use_cache=False)
    return {name: recorder.statistics[recorder.owner[name]] for name in holders}


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


class _Recorder(Generic[Statistics]):
    """Keeps statistics of inputs while a model runs.

    Attributes:
        statistics: Name of the first submodule with an input → what is kept of it.
        owner: Name of each submodule → the first one that is given the same tensor.
    """

    def __init__(self, holders: Mapping[str, nn.Module], make: Callable[[int, torch.device], Statistics]) -> None:
        self._holders = holders
        self._make = make
        self._seen: list[tuple[Tensor, str]] = []
        self._is_real = torch.empty(0, dtype=torch.bool)
        self.statistics: dict[str, Statistics] = {}
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
        tokens = given.reshape(-1, given.shape[-1])[self._is_real.to(given.device).flatten()].float()
        if name not in self.statistics:
            self.statistics[name] = self._make(tokens.shape[-1], tokens.device)
        self.statistics[name].add(tokens)


def leading_directions(moment: Float[Tensor, "_in _in"], energy: float) -> Float[Tensor, "_in rank"]:
    """Return the fewest leading eigenvectors that hold a share of the trace.

    Args:
        moment: Symmetric, positive semi-definite.
        energy: Share of the trace in [0, 1); 0 gives no direction.

    Example:
        >>> leading_directions(torch.diag(torch.tensor([1.0, 8.0, 1.0])), 0.5).abs().T
        tensor([[0., 1., 0.]])
    """
    found = exact_spectrum(moment)
    return found.vectors[:, : found.rank_for(energy)].contiguous()
