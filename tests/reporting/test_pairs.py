"""Tests and intervals for two models on the same prompts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from statistics_reference import textbook_mcnemar

from securetune.artifacts import RateEstimate
from securetune.reporting.pairs import (
    SIGN_FLIPS,
    Discordant,
    discordant_prompts,
    holm,
    matched_interval,
    mcnemar_p,
    sign_flip_p,
    told_by_all,
)

counts = st.integers(min_value=0, max_value=40)


@given(counts, counts)
def test_mcnemar_is_twice_the_smaller_tail(b: int, c: int) -> None:
    """The exact test equals its textbook form, and does not care which model is called the reference."""
    assert mcnemar_p(Discordant(b, c)) == pytest.approx(textbook_mcnemar(b, c))
    assert mcnemar_p(Discordant(b, c)) == pytest.approx(mcnemar_p(Discordant(c, b)))


@given(counts, counts, st.integers(min_value=1, max_value=100))
def test_swapping_the_models_flips_the_interval(b: int, c: int, same: int) -> None:
    """The interval of the reversed difference is the mirror image, holds the difference, and is within [-1, 1]."""
    pairs = b + c + same
    here, there = matched_interval(Discordant(b, c), pairs), matched_interval(Discordant(c, b), pairs)
    assert (here.low, here.high) == pytest.approx((-there.high, -there.low))
    assert -1 <= here.low < (b - c) / (pairs + 2) < here.high <= 1


def test_two_models_that_never_differ_may_still_differ_elsewhere() -> None:
    """No discordant prompt gives an interval around 0 that shrinks with the prompts, not a certain 0."""
    few, many = matched_interval(Discordant(0, 0), 10), matched_interval(Discordant(0, 0), 1000)
    assert few.low == pytest.approx(-few.high)
    assert few.high > many.high > 0


@pytest.mark.parametrize(("n", "both", "only"), [(30, 0.1, 0.15), (100, 0.3, 0.2), (300, 0.02, 0.03)])
def test_the_matched_interval_holds_the_truth_as_often_as_it_says(n: int, both: float, only: float) -> None:
    """Of simulated pairs with unequal rates, 93 to 98.5 % of the intervals hold the true difference."""
    generator, truth = np.random.default_rng(0), only - only / 3
    cells = generator.multinomial(n, [both, only, only / 3, 1 - both - only - only / 3], size=4000)
    found = [matched_interval(Discordant(b, c), n) for _, b, c, _ in cells.tolist()]
    assert 0.93 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.985


@pytest.mark.parametrize(("n", "p"), [(50, 0.1), (100, 0.05), (100, 0.5), (300, 0.9)])
def test_wilsons_interval_holds_the_truth_as_often_as_it_says(n: int, p: float) -> None:
    """Weighted by the binomial distribution, so exactly, the intervals hold the true rate in 93 to 97 % of cases."""
    found = [RateEstimate.from_counts(k, n) for k in range(n + 1)]
    covered = sum(binom.pmf(k, n, p) for k, each in enumerate(found) if each.low <= p <= each.high)
    assert 0.93 <= covered <= 0.975


def test_holm_multiplies_by_how_many_are_left() -> None:
    """The smallest of m counts m times, and no corrected value is below an earlier one or above 1."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_prompts_without_a_verdict_are_left_out_for_both() -> None:
    """A prompt stays only if every seed of both models has a verdict on it."""
    here = np.array([[1.0, np.nan, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    there = np.array([[0.0, 0.0, 0.0, np.nan]])
    kept = told_by_all([here, there])
    assert [table.tolist() for table in kept] == [[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0]]]
    assert discordant_prompts(kept[0][0], kept[1][0]) == Discordant(1, 0)


def test_nothing_has_no_interval() -> None:
    """An interval over no prompt is refused."""
    with pytest.raises(ValueError, match="at least one pair; got 0"):
        matched_interval(Discordant(0, 0), 0)


def all_signs_p(differences: list[np.ndarray]) -> float:
    """Go through every assignment of signs."""
    values = np.concatenate([each / (len(each) * len(differences)) for each in differences])
    signs = np.array(list(itertools.product([-1, 1], repeat=len(values))))
    return float(np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12))


@given(st.lists(st.lists(st.sampled_from([-1.0, -0.4, 0.0, 0.2, 1.0]), min_size=1, max_size=5), min_size=1, max_size=2))
@settings(max_examples=30)
def test_the_permutation_test_agrees_with_all_permutations(suites: list[list[float]]) -> None:
    """The drawn signs give the p value of all signs, to what 9,999 draws can tell; the order of suites is no matter."""
    differences = [np.array(values) for values in suites]
    p = sign_flip_p(differences)
    assert p == pytest.approx(all_signs_p(differences), abs=0.025)
    assert p == pytest.approx(sign_flip_p([-values for values in differences]), abs=0.025)


def test_a_difference_on_every_prompt_has_the_least_p() -> None:
    """Forty prompts that all differ in one direction are as certain as the draws allow."""
    assert sign_flip_p([np.ones(40)]) == pytest.approx(1 / (1 + SIGN_FLIPS))
