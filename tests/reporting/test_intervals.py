"""Intervals over seeds and prompts."""

import numpy as np
import pytest
from scipy.stats import binomtest

from securetune.reporting.intervals import difference, summarize


def outcomes(*shares: float, prompts: int = 200, seed: int = 0) -> np.ndarray:
    """Draw a table of 0 and 1 with one row a share; a prompt that is hard in one seed is hard in all."""
    hardness = np.random.default_rng(seed).random(prompts)
    return np.array([hardness < share for share in shares], dtype=float)


@pytest.mark.parametrize("successes", [0, 1, 33, 99, 100])
def test_one_seed_has_wilsons_interval(successes: int) -> None:
    """A rate of one seed on one suite has SciPy's Wilson interval over prompts."""
    table = np.array([[1.0] * successes + [0.0] * (100 - successes)])
    found = summarize([table], is_rate=True)
    reference = binomtest(successes, 100).proportion_ci(0.95, method="wilson")
    assert found.mean == successes / 100
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert found.per_seed == [successes / 100]


def test_several_seeds_equal_a_plain_bootstrap() -> None:
    """The interval over seeds and prompts is that of a bootstrap written as a loop, up to its own noise."""
    table = outcomes(0.3, 0.5, 0.45)
    generator = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        seeds = generator.integers(3, size=3)
        prompts = generator.integers(200, size=200)
        means.append(table[np.ix_(seeds, prompts)].mean())
    found = summarize([table], is_rate=True)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.015)
    assert found.mean == pytest.approx(np.mean(found.per_seed))
    assert found.per_seed == pytest.approx([0.3, 0.5, 0.45], abs=0.1)


def test_more_seeds_of_the_same_prompts_do_not_count_as_more_prompts() -> None:
    """Three seeds with equal answers are as uncertain as one: the prompts are the same."""
    one = outcomes(0.4)
    three = np.repeat(one, 3, axis=0)
    narrow, wide = summarize([three], is_rate=True), summarize([one], is_rate=True)
    assert narrow.high - narrow.low == pytest.approx(wide.high - wide.low, rel=0.1)


def test_seeds_that_differ_widen_the_interval() -> None:
    """Disagreement between seeds is part of the uncertainty."""
    same, different = outcomes(0.5, 0.5, 0.5), outcomes(0.2, 0.5, 0.8)
    assert np.ptp(_bounds(different)) > 2 * np.ptp(_bounds(same))


def _bounds(table: np.ndarray) -> tuple[float, float]:
    found = summarize([table], is_rate=True)
    return found.low, found.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_rate_without_any_variation_keeps_an_interval(value: float) -> None:
    """If all answers of all seeds agree, Wilson's interval for the prompts is shown, not a width of zero."""
    found = summarize([np.full((3, 50), value)], is_rate=True)
    reference = binomtest(int(50 * value), 50).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))


def test_suites_count_equally() -> None:
    """With several suites the mean is over suites, not over prompts, as the published protocol has it."""
    found = summarize([np.ones((2, 10)), np.zeros((2, 90))], is_rate=True)
    assert found.mean == 0.5
    assert found.per_seed == [0.5, 0.5]


def test_ratings_have_an_interval_on_their_scale() -> None:
    """A rating's interval comes from resampling, stays on the scale, and is the same each time."""
    ratings = np.array([[1.0, 5.0, 1.0, 1.0, 5.0, 3.0], [1.0, 5.0, 1.0, 4.0, 5.0, 3.0]])
    found = summarize([ratings], is_rate=False)
    assert 1.0 <= found.low < found.mean < found.high <= 5.0
    assert summarize([ratings], is_rate=False) == found


@pytest.mark.parametrize("tables", [[], [np.zeros((0, 5))], [np.zeros((3, 0))]])
def test_a_metric_over_no_data_raises(tables: list[np.ndarray]) -> None:
    """Nothing measured is an error, never 0.0."""
    with pytest.raises(ValueError, match="at least one suite, seed and prompt"):
        summarize(tables, is_rate=True)


def test_differences_use_the_shared_prompts() -> None:
    """On the same prompts a small difference is certain that would drown in the noise of separate prompts."""
    base, better = outcomes(0.50), outcomes(0.42)
    found = difference([better], [base])
    assert found.mean == pytest.approx(better.mean() - base.mean())
    assert found.high < 0
    separate = [summarize([table], is_rate=True) for table in (better, base)]
    assert separate[0].high > separate[1].low


def test_a_method_does_not_differ_from_itself() -> None:
    """With one seed, the difference of a table to itself is exactly zero."""
    table = outcomes(0.4)
    assert difference([table], [table]).model_dump() == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_the_numbers_of_seeds_may_differ() -> None:
    """A method with one seed can be compared with a baseline of three; the interval covers the true difference."""
    found = difference([outcomes(0.3)], [outcomes(0.6, 0.7, 0.65)])
    assert found.low < -0.35 < found.high


def test_differences_need_the_same_prompts() -> None:
    """Tables over different prompts cannot be compared."""
    with pytest.raises(ValueError, match="both must have the same prompts; got 10 and 20"):
        difference([np.zeros((1, 10))], [np.zeros((1, 20))])
