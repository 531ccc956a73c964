"""The hidden state at the last token of a rendered prompt: what a model knows of a request when it begins to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from securetune.data.prompts import Prompt
from securetune.models.rendering import padding_token_id, prompt_token_ids


class TokenBatch(NamedTuple):
    """Prompts of similar length, padded on the right.

    In a causal model no token sees a later one, so padding on the right cannot change a prompt's own states, and
    positions count from 0 as they do without padding. So no attention mask is needed, which keeps torch on its fast
    causal kernel.

    Attributes:
        input_ids: Token ids.
        last: Index of each prompt's last token.
        order: Place of each prompt in the caller's list.
    """

    input_ids: Int[Tensor, "batch seq"]
    last: Int[Tensor, " batch"]
    order: Int[Tensor, " batch"]


def make_batches(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], batch_size: int, device: torch.device
) -> list[TokenBatch]:
    """Render and tokenize prompts, and batch them by length so that little is padded.

    Raises:
        DataError: If there is no prompt, or the chat template refuses one.
    """
    rows = prompt_token_ids(tokenizer, [prompt.messages for prompt in prompts])
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [_make_batch([rows[i] for i in chunk], chunk, padding_token_id(tokenizer), device) for chunk in chunks]


def _make_batch(rows: list[list[int]], order: list[int], pad: int, device: torch.device) -> TokenBatch:
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    return TokenBatch(ids, last, torch.tensor(order, device=device))


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the part of a causal language model below its head: logits over the vocabulary are never needed here."""
    decoder: nn.Module = model.get_decoder()
    return decoder


def at_last_token(
    states: Float[Tensor, "batch seq hidden"], last: Int[Tensor, " batch"]
) -> Float[Tensor, "batch hidden"]:
    """Pick each prompt's state at its last token."""
    return states[torch.arange(len(last), device=states.device), last]


def in_callers_order(
    parts: Sequence[Float[Tensor, "_ ..."]], batches: Sequence[TokenBatch]
) -> Float[Tensor, "prompt ..."]:
    """Join per-batch results and undo the sorting by length."""
    joined = torch.cat(list(parts))
    result = torch.empty_like(joined)
    result[torch.cat([batch.order for batch in batches])] = joined
    return result


@torch.inference_mode()
def final_states(model: PreTrainedModel, batches: Sequence[TokenBatch]) -> Float[Tensor, "prompt hidden"]:
    """Return the state after the final norm at each prompt's last token, in the order of the prompts."""
    decoder = decoder_of(model)
    parts = [
        at_last_token(decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state, batch.last)
        for batch in batches
    ]
    return in_callers_order(parts, batches)


@torch.inference_mode()
def states_of_all_layers(model: PreTrainedModel, batches: Sequence[TokenBatch]) -> Float[Tensor, "layer prompt hidden"]:
    """Return the output of every layer at each prompt's last token, the last one after the final norm."""
    decoder = decoder_of(model)
    parts = []
    for batch in batches:
        output = decoder(input_ids=batch.input_ids, use_cache=False, output_hidden_states=True)
        parts.append(torch.stack([at_last_token(states, batch.last) for states in output.hidden_states[1:]], dim=1))
    return in_callers_order(parts, batches).transpose(0, 1)


def last_token_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    batch_size: int = 64,
    layers: Literal["final", "all"] = "final",
) -> Float[Tensor, "prompt hidden"] | Float[Tensor, "layer prompt hidden"]:
    """Compute the hidden state at the last token of each rendered prompt, generation prompt included.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, with a chat template.
        prompts: Requests.
        batch_size: Prompts a forward pass.
        layers: `final`: the state after the final norm. `all`: the output of every layer, the last one after the final
            norm, as transformers' `hidden_states[1:]`.

    Raises:
        DataError: If there is no prompt, or the chat template refuses one.
    """
    batches = make_batches(tokenizer, prompts, batch_size, model.device)
    return final_states(model, batches) if layers == "final" else states_of_all_layers(model, batches)
