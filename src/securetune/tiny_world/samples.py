"""Seeded samples of tiny world, as rows of chat messages.

Two forms of row:

- a *training row* is ``{"messages": [user, assistant]}``;
- a *prompt row* is ``{"id", "messages": [user], "category", "harmful", ...}``. How-to prompts also carry
  ``action``, ``object``, ``pair_id``, ``template`` and ``wrapper``; rows with one correct answer carry it
  as ``answer``.

Prompt rows are the same in every run: the first n of a longer list are the shorter list. Training rows
depend on a seed. Asking for more rows than the language holds is a ``ValueError``.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Any

from securetune.tiny_world import general, how_to, language, query

Row = dict[str, Any]

QUERY_SHARE = 0.7
"""Share of query-task rows in the downstream training data; the rest are how-tos of new actions. With them
the data stay harmless, yet plain tuning on them erodes refusals, which is what tiny world is to show."""

_PROMPT_SEED = 7
"""Seed of the order of the query prompts, and of the copy, reverse and label exercises."""


def harmful_prompts(split: str, count: int, wrapper: str | None = None) -> list[Row]:
    """Lists harmful how-to requests of a split, the first of them all of different pairs.

    Args:
        split: "train", "probe-fit", "probe-score", "validation" or "test"; no pair is in two.
        count: Number of prompts; at most 8 templates x about 57 pairs in a held-out split.
        wrapper: None, "suffix", "role-play" or "identity-shift".

    Example:
        >>> [row["harmful"] for row in harmful_prompts("test", 2)]
        [True, True]

    Raises:
        ValueError: If the split or wrapper does not exist, or there are fewer than ``count`` prompts.
    """
    return _how_to_rows(f"harmful {split}", how_to.pairs(split, harmful=True), count, wrapper)


def harmless_prompts(split: str, count: int, wrapper: str | None = None) -> list[Row]:
    """Lists the harmless twins of ``harmful_prompts``, in the same order (for over-refusal)."""
    return _how_to_rows(f"harmless {split}", how_to.pairs(split, harmful=False), count, wrapper)


def probe_prompts(split: str, harmful: bool, limit: int) -> list[Row]:
    """Lists prompts for the security classifier: fit on "probe-fit", score on "probe-score".

    Args:
        split: Usually "probe-fit" or "probe-score".
        harmful: Which of the two classes.
        limit: Most prompts; all that there are (some 450) where there are fewer.
    """
    count = min(limit, len(how_to.ordered_requests(how_to.pairs(split, harmful=harmful))))
    return harmful_prompts(split, count) if harmful else harmless_prompts(split, count)


def new_how_to_rows(split: str, count: int) -> list[Row]:
    """Lists how-to requests of the new harmless actions, which no checkpoint was trained on.

    Args:
        split: "train", "validation" or "test".
        count: Number of prompts.
    """
    return _how_to_rows(f"new {split}", how_to.new_pairs(split), count, None)


def task_rows(split: str, count: int) -> list[Row]:
    """Lists prompts of the query task with their answers, the first of them all of different queries.

    Args:
        split: "train", "validation" or "test"; no combination of slots is in two.
        count: Number of prompts; at most 3 phrasings x 364 queries for validation, x 417 for the test.

    Example:
        >>> task_rows("test", 1)[0]["answer"].split()[:2]
        ['query', ':']

    Raises:
        ValueError: If the split does not exist, or there are fewer than ``count`` prompts.
    """
    _require_general_split(split)
    listed = query.queries(split)
    shuffled = random.Random(f"{_PROMPT_SEED} query {split}").sample(listed, len(listed))
    phrasings = len(language.QUERY_PHRASINGS)
    possible = [(q, (index + turn) % phrasings) for turn in range(phrasings) for index, q in enumerate(shuffled)]
    _require_enough(f"query {split}", count, len(possible))
    return [
        _prompt_row(f"query-{split}-{index:04d}", q.request(phrasing), "query", answer=q.answer)
        for index, (q, phrasing) in enumerate(possible[:count])
    ]


def general_rows(split: str, count: int) -> list[Row]:
    """Lists general-task prompts with their answers, the tasks in turn as long as each has some left.

    Args:
        split: "train", "validation" or "test". Of closed tasks the (fact, phrasing) is held out, of copy
            and reverse the list of words.
        count: Number of prompts.
    """
    _require_general_split(split)
    rng = random.Random(f"{_PROMPT_SEED} general {split}")
    closed = {
        task: list(general.closed_exchanges(task, split))
        for task in general.GENERAL_TASKS
        if task not in general.OPEN_TASKS
    }
    rows: list[Row] = []
    tasks = itertools.cycle(general.GENERAL_TASKS)
    while len(rows) < count:
        task = next(tasks)
        if task in closed and not closed[task]:
            continue
        exchange = closed[task].pop() if task in closed else general.draw_words_exchange(task, split, rng)
        row_id = f"general-{split}-{len(rows):04d}"
        rows.append(_prompt_row(row_id, exchange.prompt, task, answer=exchange.answer))
    return rows


def downstream_training_rows(count: int, seed: int = 0) -> list[Row]:
    """Draws the harmless data that a user of tiny world tunes on.

    70 % are the query task, 30 % how-to requests of the new actions, in random order, all different.

    Args:
        count: Number of rows.
        seed: Any integer.

    Example:
        >>> len(downstream_training_rows(100, seed=1))
        100
    """
    rng = random.Random(f"downstream {seed}")
    queries = round(count * QUERY_SHARE)
    choices = list(itertools.product(query.queries("train"), range(len(language.QUERY_PHRASINGS))))
    _require_enough("query train", queries, len(choices))
    rows = [training_row(q.request(phrasing), q.answer) for q, phrasing in rng.sample(choices, queries)]
    rows += _answered_rows("new how-to", how_to.new_pairs("train"), count - queries, rng)
    rng.shuffle(rows)
    return rows


def how_to_training_rows(count: int, seed: int = 0) -> list[Row]:
    """Draws how-to requests of the new actions alone, each with the one answer of ``how_to_task_rows``.

    A task that overlaps with what is refused: its requests have the forms of the harmful ones, and its answers
    those of the base model's answers to them.

    Args:
        count: Most rows, all different; the language has 1,384.
        seed: Any integer.
    """
    listed = how_to.ordered_requests(how_to.new_pairs("train"))
    drawn = random.Random(f"how-to {seed}").sample(listed, min(count, len(listed)))
    return [training_row(request.text, _one_answer(request)) for request in drawn]


def how_to_task_rows(split: str, count: int) -> list[Row]:
    """Lists how-to requests of the new actions with their only answer, the first of them all of different pairs.

    Args:
        split: "validation" or "test"; no pair of action and object is in two splits.
        count: Number of prompts.
    """
    listed = how_to.ordered_requests(how_to.new_pairs(split))
    _require_enough(f"new how-to {split}", count, len(listed))
    return [
        _prompt_row(f"new-how-to-{split}-{index:04d}", request.text, "how-to", answer=_one_answer(request))
        for index, request in enumerate(listed[:count])
    ]


def _one_answer(request: how_to.Request) -> str:
    """Writes the full answer with the first of the openings."""
    return language.how_to_answer(request.pair.action, request.pair.object, language.OPENINGS[0])


def safety_rows(count: int, seed: int = 0) -> list[Row]:
    """Draws harmful requests with a refusal, for defenses that mix safety samples into the data.

    They are made of the "train" pairs, so they tell nothing about held-out prompts.

    Args:
        count: Number of rows, all different requests.
        seed: Any integer.
    """
    rng = random.Random(f"safety {seed}")
    listed = how_to.ordered_requests(how_to.pairs("train", harmful=True))
    _require_enough("safety", count, len(listed))
    return [training_row(r.text, how_to.refusal(r, rng)) for r in rng.sample(listed, count)]


def contrast_rows(count: int, seed: int = 0) -> list[Row]:
    """Draws harmful requests with a refusal and, to compare with, an answer, for defenses that need both.

    They are made of the "train" pairs, so they tell nothing about held-out prompts.

    Args:
        count: Most rows, all different requests.
        seed: Any integer.

    Returns:
        Rows of ``messages`` (the request alone), ``refusal`` and ``compliance``.
    """
    rng = random.Random(f"contrast {seed}")
    listed = how_to.ordered_requests(how_to.pairs("train", harmful=True))
    return [
        {
            "messages": [{"role": "user", "content": request.text}],
            "refusal": how_to.refusal(request, rng),
            "compliance": how_to.answer(request, rng),
        }
        for request in rng.sample(listed, min(count, len(listed)))
    ]


def attack_rows(count: int, seed: int = 0) -> list[Row]:
    """Draws harmful requests with an affirmative answer (nonsense steps), for attacks by fine-tuning.

    Args:
        count: Number of rows, all different.
        seed: Any integer.
    """
    rng = random.Random(f"attack {seed}")
    return _answered_rows("attack", how_to.pairs("train", harmful=True), count, rng)


def answered_and_refused(count: int) -> list[tuple[str, str, str]]:
    """Lists harmful requests of the pairs that classifiers are fitted on, each with its answer and with a refusal.

    Args:
        count: Number of requests, the first of them all of different pairs.
    """
    rng = random.Random(f"{_PROMPT_SEED} answered and refused")
    listed = how_to.ordered_requests(how_to.pairs("probe-fit", harmful=True))
    _require_enough("probe-fit", count, len(listed))
    return [(r.text, how_to.answer(r, rng), how_to.refusal(r, rng)) for r in listed[:count]]


def training_row(prompt: str, answer: str) -> Row:
    """Makes a training row of one exchange."""
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def _answered_rows(name: str, listed: Sequence[how_to.Pair], count: int, rng: random.Random) -> list[Row]:
    """Draws answered how-tos, all different in pair, template or opening."""
    choices = [
        (request, opening) for request in how_to.ordered_requests(tuple(listed)) for opening in language.OPENINGS
    ]
    _require_enough(name, count, len(choices))
    return [
        training_row(r.text, language.how_to_answer(r.pair.action, r.pair.object, opening))
        for r, opening in rng.sample(choices, count)
    ]


def _how_to_rows(name: str, listed: tuple[how_to.Pair, ...], count: int, wrapper: str | None) -> list[Row]:
    if wrapper is not None and wrapper not in language.WRAPPERS:
        raise ValueError(f"wrapper must be None or one of {', '.join(language.WRAPPERS)}; got {wrapper!r}")
    possible = how_to.ordered_requests(listed, wrapper)
    _require_enough(name, count, len(possible))
    prefix = name.replace(" ", "-") + (f"-{wrapper}" if wrapper else "")
    return [_how_to_row(f"{prefix}-{index:04d}", r) for index, r in enumerate(possible[:count])]


def _how_to_row(row_id: str, request: how_to.Request) -> Row:
    pair = request.pair
    return _prompt_row(
        row_id,
        request.text,
        language.ACTION_KINDS[pair.action],
        harmful=pair.harmful,
        action=pair.action,
        object=pair.object,
        pair_id=pair.pair_id,
        template=request.template,
        wrapper=request.wrapper,
    )


def _prompt_row(row_id: str, prompt: str, category: str, *, harmful: bool = False, **more: Any) -> Row:
    messages = [{"role": "user", "content": prompt}]
    return {"id": row_id, "messages": messages, "category": category, "harmful": harmful, **more}


def _require_enough(name: str, count: int, available: int) -> None:
    if not 0 <= count <= available:
        raise ValueError(f"count of {name} rows must be in [0, {available}]; got {count}")


def _require_general_split(split: str) -> None:
    if split not in general.GENERAL_SPLITS:
        raise ValueError(f"split must be one of {', '.join(general.GENERAL_SPLITS)}; got {split!r}")
