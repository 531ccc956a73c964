"""What a model itself answers, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from securetune.models.rendering import Message, encode_prompts, padding_token_id


@torch.no_grad()
def own_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    batch_size: int,
) -> list[list[int]]:
    """Return the tokens of each prompt followed by the model's own greedy answer, its end token included.

    Args:
        model: A causal language model, with or without adapters.
        tokenizer: The model's.
        conversations: Each ends with the user.
        max_new_tokens: Longest answer; 0: the prompts alone.
        batch_size: Prompts generated together.
    """
    rows: list[list[int]] = []
    for begin in range(0, len(conversations), batch_size):
        batch = encode_prompts(tokenizer, conversations[begin : begin + batch_size]).to(next(model.parameters()).device)
        prompts = batch["input_ids"]
        answered = prompts if max_new_tokens == 0 else _generate(model, batch, max_new_tokens, tokenizer)
        for row, mask in zip(answered.tolist(), batch["attention_mask"].tolist(), strict=True):
            prompt = [token for token, is_real in zip(row, mask, strict=False) if is_real]
            rows.append(prompt + _until_end(row[len(mask) :], end_tokens(model)))
    return rows


def _generate(model: Any, batch: Any, max_new_tokens: int, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    found: Tensor = model.generate(
        **batch,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_new_tokens,
        pad_token_id=padding_token_id(tokenizer),
    )
    return found


def end_tokens(model: Any) -> frozenset[int]:
    """Return the tokens with which the model ends an answer."""
    listed = model.generation_config.eos_token_id
    return frozenset([listed] if isinstance(listed, int) else listed or [])


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Cut behind the first end token: what follows is padding."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens
