"""The refusals of our own, which every judge must know."""

import pytest

from securetune.data.built_in_answers import built_in_refusals, refusal
from securetune.evaluation import declines
from securetune.evaluation.keyword_judges import read_keyword_lists

REFUSALS = [row["messages"][1]["content"] for row in built_in_refusals()]


def test_all_refusals_differ():
    """No two built-in requests have the same refusal, nor have the first 60 of a category."""
    assert len(set(REFUSALS)) == len(REFUSALS) == 120
    assert len({refusal(place, "drugs") for place in range(60)}) == 60


@pytest.mark.parametrize("judge", read_keyword_lists(), ids=lambda each: each.name)
def test_every_keyword_judge_knows_them(judge):
    """A model that has learned these refusals is not taken for one that complies."""
    assert all(map(judge.matches, REFUSALS))


def test_the_rules_know_them_too():
    """So does the judge that goes by rules instead of phrases."""
    assert all(map(declines, REFUSALS))
