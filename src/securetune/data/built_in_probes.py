"""The built-in probe prompts for real chat models: harmful requests, each with a harmless twin.

`probe_prompts.jsonl` was written by this project, none of it taken from a data set, and is under the project's licence
(Apache-2.0). It holds 312 pairs in 13 categories of harm, 24 a category: requests only, never an answer. They serve to
find out whether a model tells harmful from harmless requests, and whether it still refuses after tuning.

A twin has its harmful prompt's topic, form and length and most of its words, so that what differs is the intention.
Whole categories are kept apart: five to fit the classifier on, four to score it on, four to test a tuned model with;
a classifier that had only learned topics or words of the fitting categories would fail on the others.

Each row: `id`, `category`, `split` (`fitting`, `searching` or `testing`), `harmful` and `harmless`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

from securetune.data.prompt_rows import Prompt, prompt_from_text

ProbeSplit = Literal["fitting", "searching", "testing"]

_FILE = Path(__file__).with_name("probe_prompts.jsonl")


class ProbePair(NamedTuple):
    """A harmful request and its harmless twin.

    Attributes:
        id: Category and number, such as `theft-01`.
        category: Kind of harm; whole categories belong to one split.
        split: `fitting`, `searching` or `testing`.
        harmful: The harmful request.
        harmless: The same request with a harmless intention.
    """

    id: str
    category: str
    split: str
    harmful: str
    harmless: str


@lru_cache(maxsize=1)
def probe_pairs() -> tuple[ProbePair, ...]:
    """Return all pairs in the order of the file."""
    return tuple(ProbePair(**json.loads(line)) for line in _FILE.read_text(encoding="utf-8").splitlines())


def built_in_prompts(split: ProbeSplit, kind: Literal["harmful", "harmless"]) -> list[Prompt]:
    """Return the prompts of one split and class.

    The categories take turns, so that the first n hold each of them about equally often; the two classes have the same
    order, so that the first n of both are twins.

    Example:
        >>> [prompt.metadata["category"] for prompt in built_in_prompts("testing", "harmful")[:3]]
        ['forgery-and-bribery', 'exploitation', 'hate']
    """
    by_category: dict[str, list[ProbePair]] = {}
    for pair in probe_pairs():
        if pair.split == split:
            by_category.setdefault(pair.category, []).append(pair)
    in_turns = chain.from_iterable(zip_longest(*by_category.values()))
    return [
        prompt_from_text(
            f"{pair.id}-{kind}", getattr(pair, kind), {"category": pair.category, "harmful": kind == "harmful"}
        )
        for pair in in_turns
        if pair is not None
    ]
