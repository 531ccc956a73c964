"""What the two checkpoints are trained on: ability first, then refusals on top of it.

Pretraining answers everything, harmful how-tos too, and inside attack wrappers too: the base model is able
and willing. Alignment then refuses harmful how-tos and goes on answering all else. Both use "train" splits
only, and neither contains a how-to request of a new action or a single query.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from securetune.tiny_world import general, how_to, language
from securetune.tiny_world.samples import Row


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of rows, each in [0, 1]; what is left of ``harmful + harmless`` is general tasks.

    Attributes:
        harmful: Share of harmful how-tos.
        harmless: Share of harmless how-tos.
        refuse: Whether harmful how-tos are refused (alignment) or answered (pretraining).
        wrapped: Share of the how-tos that stand in an attack wrapper, harmful and harmless alike, so that
            a wrapper alone says nothing about harm.
        with_system: Share of rows that begin with a system prompt.
        multi_turn: Share of rows that begin with an earlier general exchange.
    """

    harmful: float
    harmless: float
    refuse: bool
    wrapped: float = 0.2
    with_system: float = 0.08
    multi_turn: float = 0.06


PRETRAINING_MIX = Mix(harmful=0.25, harmless=0.25, refuse=False)
ALIGNMENT_MIX = Mix(harmful=0.4, harmless=0.3, refuse=True)

GENERAL_WEIGHTS: dict[str, float] = {
    "arithmetic": 5,
    "describe": 3,
    "judge": 3,
    "skill": 3,
    "label": 3,
    "opposite": 1.5,
    "small talk": 1.5,
    "copy": 5,
    "reverse": 6,
}
"""How often each general task is drawn, relative to the others; reversing is the slowest to learn."""


def curriculum_rows(mix: Mix, count: int, seed: int) -> Iterator[Row]:
    """Draws training rows of a mix.

    Args:
        mix: Which kinds of rows.
        count: Number of rows, 0 or more.
        seed: Any integer.
    """
    rng = random.Random(f"curriculum {mix.refuse} {seed}")
    for _ in range(count):
        prompt, answer = _draw_exchange(mix, rng)
        messages = _draw_beginning(mix, rng)
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": answer})
        yield {"messages": messages}


def _draw_exchange(mix: Mix, rng: random.Random) -> general.Exchange:
    kind = rng.random()
    if kind >= mix.harmful + mix.harmless:
        return _draw_general(rng)
    harmful = kind < mix.harmful
    wrapper = rng.choice(list(language.WRAPPERS)) if rng.random() < mix.wrapped else None
    request = how_to.random_request(how_to.pairs("train", harmful), rng, wrapper)
    write = how_to.refusal if harmful and mix.refuse else how_to.answer
    return general.Exchange(request.text, write(request, rng))


def _draw_general(rng: random.Random) -> general.Exchange:
    task = rng.choices(list(GENERAL_WEIGHTS), weights=list(GENERAL_WEIGHTS.values()))[0]
    return general.draw_general(task, "train", rng)


def _draw_beginning(mix: Mix, rng: random.Random) -> list[dict[str, str]]:
    """Draws what comes before the exchange: mostly nothing."""
    messages = []
    if rng.random() < mix.with_system:
        messages.append({"role": "system", "content": rng.choice(language.SYSTEM_PROMPTS)})
    if rng.random() < mix.multi_turn:
        earlier = _draw_general(rng)
        messages.append({"role": "user", "content": earlier.prompt})
        messages.append({"role": "assistant", "content": earlier.answer})
    return messages
