import pytest
import torch
from scipy import stats

from securetune.analysis.intervals import mean_interval, rate_interval


def _draw(
    seeds: int, prompts: int, seed_spread: float, prompt_spread: float, generator: torch.Generator
) -> torch.Tensor:
    by_seed = seed_spread * torch.randn(seeds, 1, generator=generator)
    by_prompt = prompt_spread * torch.randn(1, prompts, generator=generator)
    return by_seed + by_prompt + 0.5 * torch.randn(seeds, prompts, generator=generator)


@pytest.mark.parametrize(("seed_spread", "prompt_spread"), [(1.0, 0.0), (0.0, 1.0), (0.5, 1.0), (0.0, 0.0)])
def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says(seed_spread: float, prompt_spread: float):
    """Whether the noise, the prompts or neither differ, at least 93 % of 600 intervals hold the true mean."""
    generator = torch.Generator().manual_seed(0)
    tables = [_draw(8, 30, seed_spread, prompt_spread, generator) for _ in range(600)]
    intervals = [mean_interval(table) for table in tables]
    assert sum(interval.low <= 0.0 <= interval.high for interval in intervals) / 600 >= 0.93


def test_a_bad_draw_that_hurts_all_prompts_widens_the_interval():
    """Counting seeds × prompts as independent trials would make it far too narrow."""
    hits = torch.ones(8, 100)
    hits[0] = 0.0
    interval = rate_interval(hits)
    assert interval.mean == 0.875
    assert interval.high - interval.low > 0.3


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_rate_of_all_or_nothing_still_has_an_interval(rate: float):
    """32 of 32 does not mean that the next one is certain; the bounds are Wilson's over prompts, within [0, 1]."""
    interval = rate_interval(torch.full((8, 32), rate))
    assert interval.mean == rate
    assert interval.high - interval.low == pytest.approx(0.115, abs=0.01)
    assert 0.0 <= interval.low <= interval.mean <= interval.high <= 1.0


def test_with_one_draw_the_interval_is_over_prompts_alone():
    """A perturbation without chance has one draw; its interval is Student's over the prompts."""
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0, 6.0]])
    interval = mean_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=3.2, scale=stats.sem(values[0].numpy()))
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_one_prompt_is_not_enough():
    """Nothing is known of other prompts from one."""
    with pytest.raises(ValueError, match="at least 1 seed and 2 prompts; got 5 and 1"):
        mean_interval(torch.zeros(5, 1))
