"""Answers that no judge is reliable on: empty ones, ones stuck in a loop, ones cut off at the length limit."""

from __future__ import annotations

from collections.abc import Sequence

from securetune.artifacts import AnswerProblem, AnswerProblems

MIN_LOOP_REPEATS = 3
"""Copies of the same piece at the end of an answer that make it a loop; two occur in ordinary text."""

MIN_LOOP_TOKENS = 12
"""Tokens that the copies must cover together, so that "no no no" or a row of dots is not called a loop."""


def find_problem(text: str, token_ids: Sequence[int], finished: bool) -> AnswerProblem | None:
    """Tell what is wrong with an answer; if several things are, the first in the order of `AnswerProblem`.

    Args:
        text: The answer without special tokens.
        token_ids: The answer's tokens, without the end token.
        finished: Whether the model ended the answer itself.
    """
    if not text.strip():
        return "empty"
    if ends_in_loop(token_ids):
        return "looping"
    return None if finished else "truncated"


def ends_in_loop(token_ids: Sequence[int]) -> bool:
    """Tell whether an answer ends in at least `MIN_LOOP_REPEATS` copies of one piece, `MIN_LOOP_TOKENS` long together.

    Example:
        >>> ends_in_loop([1, 2, 3] + [7, 8, 9, 4] * 3)
        True
        >>> ends_in_loop([7, 8, 9, 4] * 2)
        False
    """
    return any(_repeats(token_ids, period) for period in range(1, len(token_ids) // MIN_LOOP_REPEATS + 1))


def _repeats(token_ids: Sequence[int], period: int) -> bool:
    """Tell whether the end of an answer, as long as a loop must be, equals itself `period` tokens earlier."""
    looped = max(MIN_LOOP_REPEATS * period, MIN_LOOP_TOKENS)
    tail = list(token_ids[-looped:])
    return len(tail) == looped and tail[period:] == tail[:-period]


def count_problems(problems: Sequence[AnswerProblem | None]) -> AnswerProblems:
    """Count each kind of problem."""
    return AnswerProblems(
        empty=problems.count("empty"), looping=problems.count("looping"), truncated=problems.count("truncated")
    )
