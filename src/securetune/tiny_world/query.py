"""The downstream task of tiny world: turning a request into a structured query.

No checkpoint has ever seen it, but every word of it occurs in pretraining, as an input and as an output of
the copy and reverse tasks: tuning must teach the task, not the words (else it would rewrite the embeddings,
which does damage of its own).
"""

import functools
import itertools
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


@functools.cache
def queries(split: str) -> tuple[Query, ...]:
    """Lists all queries of a split; which split a combination of slots is in follows from its text's hash.

    There are 4,032 in all: 3,251 to train on, 364 for validation and 417 to test.
    """
    slots = (language.QUERY_VERBS, language.QUERY_ITEMS, language.QUERY_CITIES, language.QUERY_DAYS)
    listed = (Query(*words) for words in itertools.product(*slots))
    return tuple(query for query in listed if general.split_of_text(query.answer) == split)
