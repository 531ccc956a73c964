"""The pairs that tell compliance from refusal: one harmful request, an answer that complies, and one that refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from securetune import tiny_world
from securetune.artifacts import sha256_json
from securetune.data.built_in_answers import AGREEING_OPENINGS, exchange, refusal, refused_requests
from securetune.data.conversations import Conversation
from securetune.data.prompts import Prompt, prompt_from_text, read_prompts
from securetune.errors import DataError

LEAST_PAIRS = 8
"""Each half of them gives a direction that is tried on the other half."""

_TINY_WORLD_PAIRS = 128
_MOST_PROBLEMS_SHOWN = 20


class AnswerPair(NamedTuple):
    """A harmful request with two answers.

    Attributes:
        request: What is asked.
        accepted: An answer that complies, or begins to.
        refused: A refusal.
    """

    request: str
    accepted: str
    refused: str


def load_pairs(model_name: str, prompts: str | None, pairs: str | None) -> list[AnswerPair]:
    """Return the pairs.

    Args:
        model_name: The start model's.
        prompts: File of harmful requests, or None.
        pairs: File of pairs, or None.

    Raises:
        DataError: If a file cannot be read or holds too few.
    """
    if pairs is not None:
        found, source = read_pairs(Path(pairs)), pairs
    elif prompts is not None:
        requests = [prompt.text for prompt in read_prompts(prompts)]
        found, source = [_with_our_answers(text, place) for place, text in enumerate(requests)], prompts
    else:
        found, source = _built_in_pairs(model_name), "the built-in pairs"
    if len(found) < LEAST_PAIRS:
        raise DataError(f"{source}: must hold at least {LEAST_PAIRS} requests; got {len(found)}")
    return found


def _built_in_pairs(model_name: str) -> list[AnswerPair]:
    if not tiny_world.speaks_tiny_world(model_name):
        return [
            AnswerPair(
                row["messages"][0]["content"],
                AGREEING_OPENINGS[place % len(AGREEING_OPENINGS)],
                row["messages"][1]["content"],
            )
            for place, row in enumerate(refused_requests())
        ]
    rows = tiny_world.answered_and_refused(_TINY_WORLD_PAIRS)
    return [AnswerPair(*row) for row in rows]


def _with_our_answers(request: str, place: int) -> AnswerPair:
    return AnswerPair(request, AGREEING_OPENINGS[place % len(AGREEING_OPENINGS)], refusal(place))


def read_pairs(path: Path) -> list[AnswerPair]:
    """Read JSON lines with the texts `prompt`, `accepted` and `refused`.

    Raises:
        DataError: If the file cannot be read, or with a sentence for each bad row.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    found: list[AnswerPair] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            pair = _pair(line)
            if isinstance(pair, str):
                problems.append(f"{path}: row {number}: {pair}")
            else:
                found.append(pair)
    if problems:
        more = len(problems) - _MOST_PROBLEMS_SHOWN
        raise DataError(problems[:_MOST_PROBLEMS_SHOWN] + [f"{path}: {more} more bad rows"] * (more > 0))
    return found


def _pair(line: str) -> AnswerPair | str:
    """Return the pair of a row, or what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"not JSON ({error})"
    given = [row.get(key) for key in ("prompt", "accepted", "refused")] if isinstance(row, dict) else []
    texts = [text for text in given if isinstance(text, str) and text.strip()]
    if len(texts) != len(AnswerPair._fields):
        return "must be an object with the texts `prompt`, `accepted` and `refused`, none of them empty"
    return AnswerPair(*texts)


def pairs_hash(pairs: Sequence[AnswerPair]) -> str:
    """Hash the pairs."""
    return sha256_json([list(pair) for pair in pairs])


def requests_of(pairs: Sequence[AnswerPair]) -> list[Prompt]:
    """Return the requests as prompts."""
    return [prompt_from_text(f"datashield:{place}", pair.request) for place, pair in enumerate(pairs, start=1)]


def conversations_of(pairs: Sequence[AnswerPair], accepted: bool) -> list[Conversation]:
    """Return the requests with one of their answers."""
    return [exchange(pair.request, pair.accepted if accepted else pair.refused) for pair in pairs]
