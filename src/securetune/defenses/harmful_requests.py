"""The harmful requests whose way through the model a method keeps: which they are, and how they enter the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from securetune.config import PositiveInt, ProbeSettings, Settings
from securetune.data.prompts import Prompt, load_probes, read_prompts
from securetune.defenses.base import DefenseContext
from securetune.defenses.own_answers import own_answers
from securetune.defenses.protected_subspace.input_moments import second_moments
from securetune.errors import ConfigError


class RequestOptions(Settings):
    """Which harmful requests a method looks at before training.

    Attributes:
        prompts: File of harmful requests; None: the prompts that analysis and search use for this model (tiny world's
            or the built-in ones), which no suite holds.
        max_prompts: Most of them. 256: more change the directions little, and each costs a generation.
        max_new_tokens: Longest own answer that counts with its request; 0: the requests alone. 64: a refusal.
        batch_size: Prompts together while the directions are gathered.
    """

    prompts: str | None = None
    max_prompts: PositiveInt = 256
    max_new_tokens: int = Field(default=64, ge=0)
    batch_size: PositiveInt = 32

    def requests(self, model_name: str) -> list[Prompt]:
        """Return the requests.

        Raises:
            DataError: If the file of `prompts` cannot be read.
        """
        if self.prompts is not None:
            return read_prompts(self.prompts)[: self.max_prompts]
        probes = load_probes(ProbeSettings(max_prompts=self.max_prompts), model_name)
        return [*probes.fit_harmful, *probes.score_harmful][: self.max_prompts]


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
