"""What a model's layers hold over an answer, and at the last token before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from securetune.data.conversations import Conversation
from securetune.errors import ModelError
from securetune.models import ChatModel, render_prompt
from securetune.models.layer_weights import decoder_layers
from securetune.models.rendering import padding_token_id


class AnswerTokens(NamedTuple):
    """A conversation up to the end of its last answer.

    Attributes:
        token_ids: Of prompt and answer; without what the template puts behind the answer.
        answer_begins: Place of the answer's first token, ≥ 1.
    """

    token_ids: list[int]
    answer_begins: int


class LayerStates(NamedTuple):
    """States of some rows at some layers, in float32.

    Attributes:
        rows: Which rows, as places in the caller's list.
        answers: Mean over each row's answer tokens.
        before: At the last token before the answer.
    """

    rows: list[int]
    answers: Float[Tensor, "layer row hidden"]
    before: Float[Tensor, "layer row hidden"]


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], max_length: int
) -> list[AnswerTokens | None]:
    """Tokenize conversations up to their last answer's end; None where the cut leaves nothing of that answer.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        conversations: Each ends with the assistant.
        max_length: Tokens a row; longer ones are cut at their end.

    Raises:
        ModelError: If the tokenizer is a slow one.
        DataError: If the template refuses a conversation.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "datashield needs a fast tokenizer (tokenizer.json): a slow one cannot tell where a token lies"
        )
    prompts = [render_prompt(tokenizer, conversation["messages"][:-1]) for conversation in conversations]
    texts = [
        prompt + conversation["messages"][-1]["content"]
        for prompt, conversation in zip(prompts, conversations, strict=True)
    ]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        _answer_tokens(ids[:max_length], offsets, len(prompt))
        for ids, offsets, prompt in zip(encoded["input_ids"], encoded["offset_mapping"], prompts, strict=True)
    ]


def _answer_tokens(ids: list[int], offsets: Sequence[tuple[int, int]], prompt_length: int) -> AnswerTokens | None:
    begins = next((place for place, (_, end) in enumerate(offsets) if end > prompt_length), len(ids))
    return AnswerTokens(ids, begins) if 1 <= begins < len(ids) else None


def layer_states(
    chat: ChatModel,
    rows: Sequence[AnswerTokens],
    layers: Sequence[int],
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[LayerStates]:
    """Yield the states batch by batch, from one pass over the rows; similar lengths come together, the longest first.

    A layer's states are its output, the residual stream behind it; what lies above the topmost of `layers` is not run.

    Args:
        chat: The model.
        rows: The conversations.
        layers: Which layers, counted from 1.
        batch_size: Rows a forward pass.
        progress: Told how many rows are done.
    """
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].token_ids), reverse=True)
    modules = decoder_layers(chat.model)
    tapped = {layer: modules[layer - 1] for layer in layers}
    decoder: Any = chat.model.get_decoder()
    device = chat.model.device
    done = 0
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        batch = _padded([rows[place] for place in chunk], padding_token_id(chat.tokenizer), device)
        capture = _Capture(batch, top=max(layers))
        with torch.inference_mode(), capture.listening(tapped), suppress(_HighEnoughError):
            decoder(input_ids=batch.input_ids, use_cache=False)
        yield capture.states(chunk, layers)
        done += len(chunk)
        progress(done)


class _Batch(NamedTuple):
    """Rows padded on the right, where in a causal model no real token sees it."""

    input_ids: Int[Tensor, "row seq"]
    is_answer: Bool[Tensor, "row seq"]
    before: Int[Tensor, " row"]


def _padded(rows: Sequence[AnswerTokens], pad: int, device: torch.device) -> _Batch:
    lengths = torch.tensor([len(row.token_ids) for row in rows], device=device)
    begins = torch.tensor([row.answer_begins for row in rows], device=device)
    width = int(lengths.max())
    ids = torch.tensor([[*row.token_ids, *[pad] * (width - len(row.token_ids))] for row in rows], device=device)
    places = torch.arange(width, device=device)
    return _Batch(ids, (places >= begins[:, None]) & (places < lengths[:, None]), begins - 1)


class _HighEnoughError(Exception):
    """Ends a forward pass: the layers above are not needed."""


class _Capture:
    """Reduces what layers give as soon as they give it, so that no layer's states are kept whole."""

    def __init__(self, batch: _Batch, top: int) -> None:
        self._batch = batch
        self._top = top
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def listening(self, modules: dict[int, nn.Module]) -> Iterator[None]:
        handles = [module.register_forward_hook(self._hook(layer)) for layer, module in modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: int) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self._keep(layer, output[0] if isinstance(output, tuple) else output)
            if layer == self._top:
                raise _HighEnoughError

        return keep

    def _keep(self, layer: int, states: Tensor) -> None:
        mask = self._batch.is_answer.to(states.device)
        before = self._batch.before.to(states.device)
        total = torch.where(mask[..., None], states, 0).sum(dim=1, dtype=torch.float32)
        places = torch.arange(len(before), device=states.device)
        self._found[layer] = (total / mask.sum(dim=1, keepdim=True), states[places, before].float())

    def states(self, rows: list[int], layers: Sequence[int]) -> LayerStates:
        answers, before = zip(*(self._found[layer] for layer in layers), strict=True)
        return LayerStates(rows, torch.stack(answers).cpu(), torch.stack(before).cpu())
