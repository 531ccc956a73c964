"""A cache of keys and values whose rows come and go in place, so that a step does not copy everything before it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE_COLUMNS = 32
"""Tokens that a row can grow by before the cache is copied. transformers' own layer copies it at every token: of 256
prompts on one core, with 1.4M parameters, that took 31 % of the time."""


class Moves(NamedTuple):
    """Which rows take the places of those that leave.

    Attributes:
        sources: Places of the rows that move.
        targets: Their new places, those of rows that leave.
        staying: How many rows stay.
    """

    sources: Tensor
    targets: Tensor
    staying: int


class _Block:
    """Memory `[rows, heads, tokens, values]`, of which the first rows and a range of the columns are in use.

    Columns left of a row's first token are read, behind a mask. There a weight of zero times "not a number" would still
    be that, so they are set to zero before they come into use.
    """

    def __init__(self, states: Tensor) -> None:
        self._memory = states
        self._rows, self._begin, self._end = states.shape[0], 0, states.shape[2]

    @property
    def states(self) -> Tensor:
        """What is in use."""
        return self._memory[: self._rows, :, self._begin : self._end]

    def append(self, states: Tensor) -> None:
        """Put tokens behind every row."""
        end = self._end + states.shape[2]
        if end > self._memory.shape[2]:
            rows = self._memory.shape[0] if 2 * self._rows > self._memory.shape[0] else self._rows
            self._copy(rows, 0, SPARE_COLUMNS + states.shape[2])
            end = self._end + states.shape[2]
        self._memory[: self._rows, :, self._end : end] = states
        self._end = end

    def keep(self, moves: Moves, unused: int) -> None:
        """Close the gaps of rows that leave with the last rows, and give up the first columns."""
        if moves.targets.numel():
            used = self._memory[:, :, self._begin : self._end]
            used[moves.targets] = used[moves.sources]
        self._rows = moves.staying
        self._begin += unused

    def join(self, states: Tensor) -> None:
        """Put rows below these, their last column under the last one."""
        rows, width = self._rows + states.shape[0], states.shape[2]
        missing = max(0, width - self._end)
        if missing or rows > self._memory.shape[0]:
            self._copy(max(rows, self._memory.shape[0]), max(0, width - (self._end - self._begin)), SPARE_COLUMNS)
        begin = min(self._begin, self._end - width)
        self._memory[: self._rows, :, begin : self._begin] = 0
        self._memory[self._rows : rows, :, begin : self._end - width] = 0
        self._memory[self._rows : rows, :, self._end - width : self._end] = states
        self._rows, self._begin = rows, begin

    def _copy(self, rows: int, left: int, right: int) -> None:
        """Take new memory, with so many free columns on both sides."""
        used = self.states
        _, heads, width, values = used.shape
        self._memory = used.new_empty((rows, heads, left + width + right, values))
        self._memory[: self._rows, :, left : left + width] = used
        self._begin, self._end = left, left + width


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, the parts of two blocks that are in use."""

    keys: Any  # a tensor, or None before the first token
    values: Any
    _blocks: tuple[_Block, ...] = ()
    _layer_type = None  # a subclass with a type of its own would be registered for every cache in this process

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens to every row, in place where there is room."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._blocks = _Block(key_states), _Block(value_states)
        else:
            for block, states in zip(self._blocks, (key_states, value_states), strict=True):
                block.append(states)
        return self._shown()

    def keep(self, moves: Moves, unused: int) -> None:
        """Let rows leave, and with them the first `unused` tokens of each other row."""
        for block in self._blocks:
            block.keep(moves, unused)
        self._shown()

    def join(self, other: GrowingLayer) -> None:
        """Put another layer's rows below these; both are widened on the left to the longer ones."""
        for block, states in zip(self._blocks, (other.keys, other.values), strict=True):
            block.join(states)
        other.reset()
        self._shown()

    def reset(self) -> None:
        """Free the memory."""
        self._blocks = ()
        super().reset()

    def _shown(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (block.states for block in self._blocks)
        return self.keys, self.values


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Make an empty cache for a model whose layers all keep every token."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() for _ in cache.layers]
    return cache


def moves_to_close(leaving: list[bool], device: torch.device) -> Moves:
    """Say which rows move so that those that stay are the first ones.

    Example:
        >>> moves_to_close([True, False, False], torch.device("cpu"))
        Moves(sources=tensor([2]), targets=tensor([0]), staying=2)
    """
    staying = len(leaving) - sum(leaving)
    targets = [place for place in range(staying) if leaving[place]]
    sources = [place for place in range(staying, len(leaving)) if not leaving[place]]
    as_index = partial(torch.tensor, dtype=torch.long, device=device)
    return Moves(as_index(sources), as_index(targets), staying)
