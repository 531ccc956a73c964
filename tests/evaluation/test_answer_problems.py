"""Unusable answers: empty, looping, truncated."""

import pytest

from securetune.evaluation.answer_problems import MIN_LOOP_TOKENS, count_problems, ends_in_loop, find_problem

LOOPS = {
    "one token": [5] * MIN_LOOP_TOKENS,
    "four tokens, three times": [1, 2, 3, *([7, 8, 9, 4] * 3)],
    "cut off inside a copy": [*([7, 8, 9, 4] * 3), 7, 8],
    "a long piece": [*range(30), *(list(range(40, 60)) * 3)],
}
NO_LOOPS = {
    "nothing": [],
    "one token": [5],
    "short emphasis": [1, 2, 5, 5, 5],
    "a piece said twice": [7, 8, 9, 4] * 2,
    "too few tokens in all": [5] * (MIN_LOOP_TOKENS - 1),
    "a loop that was left": [*([7, 8, 9, 4] * 3), *range(20, 32)],
}


@pytest.mark.parametrize("token_ids", LOOPS.values(), ids=LOOPS)
def test_a_repeating_end_is_a_loop(token_ids: list[int]) -> None:
    """An answer that ends in three copies of one piece, twelve tokens long together, is a loop."""
    assert ends_in_loop(token_ids)


@pytest.mark.parametrize("token_ids", NO_LOOPS.values(), ids=NO_LOOPS)
def test_ordinary_repetition_is_no_loop(token_ids: list[int]) -> None:
    """Short or earlier repetition does not make an answer unusable."""
    assert not ends_in_loop(token_ids)


@pytest.mark.parametrize(
    ("text", "token_ids", "finished", "expected"),
    [
        ("", [], True, "empty"),
        (" \n\u00a0", [9], True, "empty"),
        ("a", [5] * 20, False, "looping"),
        ("a", [5] * 20, True, "looping"),
        ("take the rope", [1, 2, 3], False, "truncated"),
        ("take the rope", [1, 2, 3], True, None),
    ],
)
def test_each_answer_has_at_most_one_problem(
    text: str, token_ids: list[int], finished: bool, expected: str | None
) -> None:
    """The first problem that holds is named: empty before looping before truncated."""
    assert find_problem(text, token_ids, finished) == expected


def test_counts_are_kept_apart() -> None:
    """Each kind of problem has a count of its own, and usable answers count nowhere."""
    counted = count_problems(["empty", None, "looping", "truncated", "truncated", None])
    assert (counted.empty, counted.looping, counted.truncated) == (1, 1, 2)
