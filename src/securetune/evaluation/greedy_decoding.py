"""Greedy decoding whose batch stays full: a row that has ended leaves, and the next prompts take its place.

`generate` runs a batch until its longest answer ends, so that rows which refused in ten tokens wait for one that talks
for 256. Here rows leave the cache of keys and values and join it between steps instead. Every row's tokens stand at the
right end of the cache, and the attention mask hides what is left of them, as with any batch padded on the left.

No gradients are kept, but not by `inference_mode`: what FSDP2 gathers in it could not be trained with afterwards, and
the refusal probe generates in the middle of a training.

This needs a cache that is nothing but keys and values of all tokens. Models with another one (sliding windows, states
of recurrent layers) go through `generate`, in batches of like length.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from securetune.errors import RunError
from securetune.evaluation.batch_limits import BatchLimit, is_out_of_memory
from securetune.evaluation.growing_cache import GrowingLayer, growing_cache, moves_to_close

REFILL_SHARE = 0.25
"""Share of the rows that must have ended before others take their place: reading a few prompts costs nearly as much as
reading many. Between 0.1 and 0.6 the time of 256 mixed prompts on one core differed by 13 %; 0.25 was the best."""

DROP_SHARE = 0.05
"""Share of the rows that must have ended before the last rows take their places. Until then they are computed for
nothing; 0.1 and 0.03 took as long as 0.05, within 2 %."""

_FULL_ATTENTION = {"input_ids", "attention_mask", "position_ids", "past_key_values"}


class Decoded(NamedTuple):
    """The tokens that a model put after one prompt.

    Attributes:
        position: Of the prompt in the list that was given.
        token_ids: Without the end token.
        finished: Whether an end token came.
    """

    position: int
    token_ids: list[int]
    finished: bool


@dataclass
class _Row:
    position: int
    prompt: list[int]
    room: int
    new: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def longest(self) -> int:
        return len(self.prompt) + self.room

    def take(self, token: int, ends: frozenset[int]) -> Decoded | None:
        """Append a token; return what was decoded if that ends the answer."""
        finished = token in ends
        if not finished:
            self.new.append(token)
        self.ended = finished or len(self.new) >= self.room
        return Decoded(self.position, self.new, finished) if self.ended else None


def decode_greedily(
    network: PreTrainedModel,
    prompts: Sequence[list[int]],
    rooms: Sequence[int],
    settings: GenerationConfig,
    limit: BatchLimit,
) -> Iterator[Decoded]:
    """Put the most likely tokens after each prompt, and yield each result as it ends; the shortest prompts come first.

    Where memory runs out, the rows under way begin again in a batch of half the size; nothing that was yielded is lost.

    Args:
        network: In evaluation mode.
        prompts: Token ids, at least one each.
        rooms: Most new tokens of each.
        settings: End tokens and padding token; for models that `generate` answers, all of it.
        limit: How large a batch may be.

    Raises:
        RunError: If the memory does not hold a single prompt with its answer.
    """
    # Shortest first: a long prompt widens every row beside it. The other way round, the cache of 256 mixed prompts had
    # twice as many columns, and the answers took a third longer.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    waiting = deque(_Row(index, prompts[index], rooms[index]) for index in order)
    batch: _Batch | _StaticBatch = (_Batch if keeps_full_cache(network) else _StaticBatch)(network, settings)
    while waiting or batch.rows:
        joining = _next_rows(waiting, batch, limit)
        rows = [row for row in [*batch.rows, *joining] if not row.ended]
        decoded: list[Decoded] | None = None
        try:
            decoded = batch.admit(joining) if joining else batch.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if decoded is not None:
            yield from decoded
        else:  # not inside `except`, where the traceback would hold on to the tensors that did not fit
            limit = limit.halved(_require_several(rows, network))
            _begin_again(rows, waiting)
            batch.clear()


def keeps_full_cache(network: PreTrainedModel) -> bool:
    """Tell whether the model's cache is keys and values of all tokens, layer by layer, and positions can be given."""
    takes = inspect.signature(network.forward).parameters.keys()
    layers = DynamicCache(config=network.config).layers
    return takes >= _FULL_ATTENTION and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _next_rows(waiting: deque[_Row], batch: _Batch | _StaticBatch, limit: BatchLimit) -> list[_Row]:
    """Take the rows that are to join the batch now: none, unless enough of them have room."""
    if not waiting:
        return []
    running = [row for row in batch.rows if not row.ended]
    if running and not batch.takes_more:
        return []
    width, count = max((row.longest for row in running), default=0), 0
    for row in itertools.islice(waiting, max(1, limit.rows - len(running))):
        width = max(width, row.longest)
        if len(running) + count >= limit.rows_of(width):
            break
        count += 1
    enough = min(math.ceil(limit.rows_of(width) * REFILL_SHARE), len(waiting))
    if running and count < enough:
        return []
    return batch.choose([waiting.popleft() for _ in range(count)], waiting)


def _require_several(rows: list[_Row], network: PreTrainedModel) -> int:
    if len(rows) <= 1:
        raise RunError(
            f"out of memory on {network.device} with a single prompt of {len(rows[0].prompt)} tokens and an answer of "
            f"up to {rows[0].room}. Lower evaluation.max_new_tokens, or load the model with model.dtype=bfloat16."
        )
    return len(rows)


def _begin_again(rows: list[_Row], waiting: deque[_Row]) -> None:
    again = [_Row(row.position, row.prompt, row.room) for row in rows]
    waiting.extendleft(sorted(again, key=lambda row: (-len(row.prompt), -row.position)))


class _Batch:
    """Rows under way, and their cache."""

    takes_more = True

    def __init__(self, network: PreTrainedModel, settings: GenerationConfig) -> None:
        self._network: Any = network
        self._ends = _end_tokens(settings)
        self._pad = settings.pad_token_id
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(network.forward).parameters:
            self._options["logits_to_keep"] = 1
        self.clear()

    def clear(self) -> None:
        """Forget the rows and free their memory."""
        self.rows: list[_Row] = []
        self._cache: DynamicCache | None = None
        self._last = torch.empty(0, dtype=torch.long)
        if self._network.device.type == "cuda":
            torch.cuda.empty_cache()

    def choose(self, rows: list[_Row], waiting: deque[_Row]) -> list[_Row]:
        """Any rows can run side by side."""
        return rows

    @torch.no_grad()
    def admit(self, rows: list[_Row]) -> list[Decoded]:
        """Read the prompts of new rows, and put them below those under way."""
        width = max(len(row.prompt) for row in rows)
        ids = torch.full((len(rows), width), self._pad)
        for index, row in enumerate(rows):
            ids[index, width - len(row.prompt) :] = torch.tensor(row.prompt)
        cache = growing_cache(self._network.config)
        last = self._forward(ids, rows, cache)
        self._drop_ended()
        if self._cache is None:
            self._cache, self._last = cache, last
        else:
            for ours, theirs in zip(_layers(self._cache), _layers(cache), strict=True):
                ours.join(theirs)
            self._last = torch.cat([self._last, last])
        self.rows = [*self.rows, *rows]
        return self._taken(rows, last)

    @torch.no_grad()
    def step(self) -> list[Decoded]:
        """Put one token after every row."""
        assert self._cache is not None
        self._last = self._forward(self._last[:, None], self.rows, self._cache)
        decoded = self._taken(self.rows, self._last)
        if sum(row.ended for row in self.rows) >= max(1, int(len(self.rows) * DROP_SHARE)):
            self._drop_ended()
        return decoded

    def _forward(self, ids: Int[Tensor, "rows tokens"], rows: list[_Row], cache: DynamicCache) -> Int[Tensor, " rows"]:
        """Read tokens, the last of which stands at the end of each row, and return the most likely next ones."""
        width = cache.get_seq_length() + ids.shape[1]
        # Rows that have ended go on until they are cut out; what they are given does not matter.
        lengths = torch.tensor([len(row.prompt) + len(row.new) for row in rows])[:, None]
        places = torch.arange(width)[None] - (width - lengths)
        output = self._network(
            input_ids=ids.to(self._network.device),
            attention_mask=(places >= 0).long().to(self._network.device),
            position_ids=places[:, -ids.shape[1] :].clamp(min=0).to(self._network.device),
            past_key_values=cache,
            **self._options,
        )
        best: Tensor = output.logits[:, -1].argmax(dim=-1)
        return best

    def _taken(self, rows: list[_Row], tokens: Int[Tensor, " rows"]) -> list[Decoded]:
        pairs = zip(rows, tokens.tolist(), strict=True)
        decoded = [row.take(token, self._ends) for row, token in pairs if not row.ended]
        return [each for each in decoded if each is not None]

    def _drop_ended(self) -> None:
        """Cut rows that have ended out of the cache, and with them the columns that only they had used."""
        if self._cache is None or not any(row.ended for row in self.rows):
            return
        moves = moves_to_close([row.ended for row in self.rows], self._last.device)
        if not moves.staying:
            self.rows, self._cache = [], None
            return
        for target, source in zip(moves.targets.tolist(), moves.sources.tolist(), strict=True):
            self.rows[target] = self.rows[source]
        self.rows = self.rows[: moves.staying]
        self._last = self._last.index_copy(0, moves.targets, self._last[moves.sources])[: moves.staying]
        # The last token of each row is not in the cache yet.
        unused = self._cache.get_seq_length() - max(len(row.prompt) + len(row.new) - 1 for row in self.rows)
        for layer in _layers(self._cache):
            layer.keep(moves, unused)


def _layers(cache: DynamicCache) -> list[GrowingLayer]:
    """Return the layers with keys of their own; some models let layers share those of others."""
    layers = [layer for layer in cache.layers if isinstance(layer, GrowingLayer)]
    return [layer for layer in layers if layer.is_initialized]


class _StaticBatch:
    """Rows that `generate` answers from beginning to end, for models whose cache is its own affair."""

    takes_more = False

    def __init__(self, network: PreTrainedModel, settings: GenerationConfig) -> None:
        self._network: Any = network
        self._settings = settings
        self._ends = _end_tokens(settings)
        self.rows: list[_Row] = []

    def clear(self) -> None:
        """Free the memory; no row is ever under way between two calls."""
        if self._network.device.type == "cuda":
            torch.cuda.empty_cache()

    def choose(self, rows: list[_Row], waiting: deque[_Row]) -> list[_Row]:
        """Take rows with room for equally long answers; the others go back."""
        alike = [row for row in rows if row.room == rows[0].room]
        waiting.extendleft(reversed([row for row in rows if row.room != rows[0].room]))
        return alike

    @torch.no_grad()
    def admit(self, rows: list[_Row]) -> list[Decoded]:
        """Answer the rows."""
        width = max(len(row.prompt) for row in rows)
        ids = torch.full((len(rows), width), self._settings.pad_token_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, width - len(row.prompt) :] = torch.tensor(row.prompt)
            mask[index, width - len(row.prompt) :] = 1
        settings = copy.deepcopy(self._settings)
        settings.max_new_tokens = rows[0].room
        device = self._network.device
        output = self._network.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )
        return [_cut(row, new, self._ends) for row, new in zip(rows, output[:, width:].tolist(), strict=True)]

    def step(self) -> list[Decoded]:
        """Do nothing: there is never a row under way."""
        return []


def _cut(row: _Row, tokens: list[int], ends: frozenset[int]) -> Decoded:
    for token in tokens:
        decoded = row.take(token, ends)
        if decoded is not None:
            return decoded
    return Decoded(row.position, row.new, False)


def _end_tokens(settings: GenerationConfig) -> frozenset[int]:
    listed = settings.eos_token_id
    return frozenset(listed if isinstance(listed, list) else [] if listed is None else [listed])
