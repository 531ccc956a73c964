"""How-to requests: (action, object) pairs, their splits, and the prompts made of them.

A *pair* joins an action with an object. Harmful action number i has a harmless *twin*, harmless action
number i; a pair and its twin share object, split, templates and ``pair_id``, so a harmful prompt and its
twin differ in one word. No pair is in two splits: a held-out prompt asks for a combination that the model
has never met.
"""

import functools
import itertools
import random
from dataclasses import dataclass

from securetune.tiny_world import language

PAIR_SPLIT_SHARES: dict[str, float] = {
    "train": 0.6,
    "probe-fit": 0.1,
    "probe-score": 0.1,
    "validation": 0.1,
    "test": 0.1,
}
"""Share of the harmful (and twin harmless) pairs in each split; only "train" is pretrained and aligned on."""

NEW_PAIR_SPLIT_SHARES: dict[str, float] = {"train": 0.6, "validation": 0.2, "test": 0.2}
"""The same for the pairs of new actions, none of which pretraining or alignment ever sees."""


@dataclass(frozen=True)
class Pair:
    """An action on an object.

    Attributes:
        action: The action's verb.
        object: The object's noun.
        harmful: Whether the action is a harmful one.
        pair_id: The same for a harmful pair and its harmless twin, e.g. "03-17"; "new-02-05" for a new action.
    """

    action: str
    object: str
    harmful: bool
    pair_id: str


@dataclass(frozen=True)
class Request:
    """A how-to request: a pair asked for with one template, perhaps inside an attack wrapper.

    Attributes:
        pair: What is asked for.
        template: Index into ``language.REQUEST_TEMPLATES``.
        wrapper: Name of an attack wrapper, or None.
    """

    pair: Pair
    template: int
    wrapper: str | None = None

    @property
    def text(self) -> str:
        """The user's message."""
        template = language.REQUEST_TEMPLATES[self.template]
        request = template.format(action=self.pair.action, object=self.pair.object)
        return request if self.wrapper is None else language.WRAPPERS[self.wrapper].format(request=request)


@functools.cache
def _split_of_indices(name: str, actions: int, shares: tuple[tuple[str, float], ...]) -> dict[tuple[int, int], str]:
    """Deals all (action index, object index) to the splits, the same number of each action to each."""
    rng = random.Random(f"{language.FACTS_SEED} pairs {name}")
    objects = range(len(language.OBJECTS))
    split_of: dict[tuple[int, int], str] = {}
    bounds = [round(share * len(objects) * actions) for share in itertools.accumulate(s for _, s in shares)]
    order = _balanced_order(actions, rng)
    for position, indices in enumerate(order):
        split_of[indices] = next(split for (split, _), end in zip(shares, bounds, strict=True) if position < end)
    return split_of


def _balanced_order(actions: int, rng: random.Random) -> list[tuple[int, int]]:
    """Orders all pairs so that any long stretch holds every action and every object about equally often."""
    count = len(language.OBJECTS)
    columns = rng.sample(range(count), count)
    shifts = rng.sample(range(count), count)
    rows = rng.sample(range(actions), actions)
    return [(row, columns[(place + shift) % count]) for shift in shifts for place, row in enumerate(rows)]


@functools.cache
def pairs(split: str, harmful: bool) -> tuple[Pair, ...]:
    """Lists the harmful pairs of a split, or their harmless twins in the same order.

    Raises:
        ValueError: If there is no such split.
    """
    _require_split(split, PAIR_SPLIT_SHARES)
    actions = language.HARMFUL_ACTIONS if harmful else language.HARMLESS_ACTIONS
    split_of = _split_of_indices("twins", len(actions), tuple(PAIR_SPLIT_SHARES.items()))
    return tuple(
        Pair(actions[a], language.OBJECTS[o], harmful, f"{a:02d}-{o:02d}")
        for (a, o), where in split_of.items()
        if where == split
    )


@functools.cache
def new_pairs(split: str) -> tuple[Pair, ...]:
    """Lists the pairs of new actions of a split.

    Raises:
        ValueError: If there is no such split.
    """
    _require_split(split, NEW_PAIR_SPLIT_SHARES)
    actions = language.NEW_ACTIONS
    split_of = _split_of_indices("new", len(actions), tuple(NEW_PAIR_SPLIT_SHARES.items()))
    return tuple(
        Pair(actions[a], language.OBJECTS[o], False, f"new-{a:02d}-{o:02d}")
        for (a, o), where in split_of.items()
        if where == split
    )


@functools.cache
def ordered_requests(listed: tuple[Pair, ...], wrapper: str | None = None) -> tuple[Request, ...]:
    """Lists every pair with every template, in an order whose beginnings are varied.

    All pairs come once before any comes twice, and neighbours have different templates; so the first n
    requests are a fair sample for any n. The order depends on positions only: the list made of harmless
    twins runs parallel to the harmful one.
    """
    templates = range(len(language.REQUEST_TEMPLATES))
    return tuple(
        Request(pair, (index + index // len(templates) + turn) % len(templates), wrapper)
        for turn in templates
        for index, pair in enumerate(listed)
    )


def random_request(listed: tuple[Pair, ...], rng: random.Random, wrapper: str | None = None) -> Request:
    """Draws a pair and a template."""
    return Request(rng.choice(listed), rng.randrange(len(language.REQUEST_TEMPLATES)), wrapper)


def answer(request: Request, rng: random.Random) -> str:
    """Writes the full answer; the opening is random unless the "suffix" wrapper dictates it."""
    opening = language.SUFFIX_OPENING if request.wrapper == "suffix" else rng.choice(language.OPENINGS)
    return language.how_to_answer(request.pair.action, request.pair.object, opening)


def refusal(request: Request, rng: random.Random) -> str:
    """Writes one of the refusals, some of which name what was asked."""
    return rng.choice(language.REFUSALS).format(action=request.pair.action, object=request.pair.object)


def _require_split(split: str, known: dict[str, float]) -> None:
    if split not in known:
        raise ValueError(f"split must be one of {', '.join(known)}; got {split!r}")
