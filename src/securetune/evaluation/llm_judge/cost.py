"""What judging will cost, said before the first request is sent, and the limits on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from securetune.config import LlmJudgeSettings
from securetune.errors import ConfigError

BYTES_A_TOKEN = 4
"""A common rule of thumb. Bytes of UTF-8 rather than characters, since scripts with three bytes a character take about
a token for each."""


class Cost(NamedTuple):
    """What some requests will take, attempts after failures not counted.

    Attributes:
        requests: Their number.
        prompt_tokens: Estimate: bytes of UTF-8 divided by 4.
        completion_tokens: At most: a reply of full length for each.
        price: At most, in the currency of the settings; None if they have no prices.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    price: float | None

    def plus(self, other: Cost) -> Cost:
        """Return what both take together."""
        price = None if self.price is None or other.price is None else self.price + other.price
        prompt_tokens, completion_tokens = self.prompt_tokens + other.prompt_tokens, self[2] + other[2]
        return Cost(self.requests + other.requests, prompt_tokens, completion_tokens, price)


def cost_of(prompts: Iterable[list[dict[str, str]]], settings: LlmJudgeSettings) -> Cost:
    """Estimate what prompts, a list of messages each, will cost."""
    sizes = [sum(len(message["content"].encode()) for message in messages) for messages in prompts]
    prompt_tokens = math.ceil(sum(sizes) / BYTES_A_TOKEN)
    completion_tokens = len(sizes) * settings.max_new_tokens
    if settings.prompt_price is None or settings.completion_price is None:
        return Cost(len(sizes), prompt_tokens, completion_tokens, None)
    price = (prompt_tokens * settings.prompt_price + completion_tokens * settings.completion_price) / 1e6
    return Cost(len(sizes), prompt_tokens, completion_tokens, price)


def cost_sentence(cost: Cost, who: str) -> str:
    """Say what judging will cost.

    Args:
        cost: The estimate.
        who: Whom the requests go to.
    """
    price = "" if cost.price is None else f": by the given prices at most about {cost.price:.2f}"
    return (
        f"{cost.requests:,} requests to {who}, with about {cost.prompt_tokens:,} prompt tokens (bytes of UTF-8 / "
        f"{BYTES_A_TOKEN}) and at most {cost.completion_tokens:,} tokens of reply{price}"
    )


def require_within_limits(cost: Cost, settings: LlmJudgeSettings) -> None:
    """Refuse what is above a limit.

    Raises:
        ConfigError: If the requests or the price are.
    """
    if settings.max_requests is not None and cost.requests > settings.max_requests:
        raise ConfigError(
            f"evaluation.llm_judge.max_requests is {settings.max_requests}, but {cost.requests} answers need a request "
            "each. Nothing was sent. Raise it, or lower evaluation.max_prompts."
        )
    if settings.max_cost is not None and cost.price is not None and cost.price > settings.max_cost:
        raise ConfigError(
            f"evaluation.llm_judge.max_cost is {settings.max_cost:g}, but {cost.requests} requests may cost about "
            f"{cost.price:.2f}. Nothing was sent. Raise it, or lower evaluation.max_prompts or "
            "evaluation.llm_judge.max_new_tokens."
        )
