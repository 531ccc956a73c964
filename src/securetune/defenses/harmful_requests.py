"""How the harmful requests whose way through the model a method keeps enter its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from securetune.defenses.base import DefenseContext
from securetune.defenses.own_answers import own_answers
from securetune.defenses.protected_subspace.input_moments import second_moments
from securetune.defenses.request_options import RequestOptions
from securetune.errors import ConfigError


def request_moments(
    model: nn.Module, holders: Mapping[str, nn.Module], options: RequestOptions, context: DefenseContext, method: str
) -> dict[str, Float[Tensor, "_in _in"]]:
    """Return the sum of x·xᵀ over what enters each layer from the requests and the model's own answers to them.

    Args:
        model: The model, in evaluation mode.
        holders: Name → layer.
        options: Which requests.
        context: For the tokenizer.
        method: Its name, for the message.

    Raises:
        ConfigError: If there is no tokenizer.
    """
    if context.tokenizer is None:
        raise ConfigError(f"{method} needs the model's tokenizer (processing_class) to render its prompts")
    messages = [prompt.messages for prompt in options.requests(context.model_name)]
    rows: Sequence[Sequence[int]] = own_answers(
        model, context.tokenizer, messages, options.max_new_tokens, options.batch_size
    )
    return second_moments(model, holders, rows, options.batch_size)
