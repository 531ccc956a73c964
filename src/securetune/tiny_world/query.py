"""The downstream task of tiny world: turning a request into a structured query.

No checkpoint has ever seen it, but every word of it occurs in pretraining, as an input and as an output of
the copy and reverse tasks: tuning must teach the task, not the words (else it would rewrite the embeddings,
which does damage of its own).
"""

import random
from dataclasses import dataclass

from securetune.tiny_world import general, language


@dataclass(frozen=True)
class Query:
    """The four slots of a query, each one word.

    Attributes:
        verb: What to do.
        item: With what.
        place: A city.
        day: A day of the week.
    """

    verb: str
    item: str
    place: str
    day: str

    def request(self, phrasing: int) -> str:
        """Words the query as a user would; ``phrasing`` indexes ``language.QUERY_PHRASINGS``."""
        return language.QUERY_PHRASINGS[phrasing].format(**vars(self))

    @property
    def answer(self) -> str:
        """The only correct answer."""
        return language.QUERY_ANSWER.format(**vars(self))


def draw_query(split: str, rng: random.Random) -> Query:
    """Draws a query of a split; which split a combination of slots is in follows from its text's hash."""
    while True:
        query = Query(
            rng.choice(language.QUERY_VERBS),
            rng.choice(language.QUERY_ITEMS),
            rng.choice(language.QUERY_CITIES),
            rng.choice(language.QUERY_DAYS),
        )
        if general.split_of_text(query.answer) == split:
            return query


def combinations(split: str) -> int:
    """Bounds how many different queries a split is sure to hold: 4,032 in all, a tenth for each test split."""
    total = (
        len(language.QUERY_VERBS)
        * len(language.QUERY_ITEMS)
        * len(language.QUERY_CITIES)
        * len(language.QUERY_DAYS)
    )
    # 5 % below the expected share: the hash does not divide exactly.
    return int(total * (0.8 if split == "train" else 0.1) * 0.95)
