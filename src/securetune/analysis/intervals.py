"""Confidence intervals of a mean over noise seeds and prompts.

Every seed meets every prompt, so the results x[s, p] are not S·P independent draws: a bad draw of noise hurts all
prompts at once, and a hard prompt fails under all draws. With σ²_s the variance of the seeds' means and σ²_p that of
the prompts' means, the variance of the overall mean is at most σ²_s/S + σ²_p/P (the residual is counted in both, so
the interval errs on the wide side); its degrees of freedom follow Welch and Satterthwaite.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

_CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


class _Spread(NamedTuple):
    mean: float
    variance: float
    quantile: float


def mean_interval(values: Float[Tensor, "seed prompt"]) -> Interval:
    """Return the mean and its interval, for a quantity without bounds.

    Raises:
        ValueError: If there is no seed, or fewer than two prompts. With one seed the interval is over prompts alone.
    """
    spread = _spread(values)
    half = spread.quantile * math.sqrt(spread.variance)
    return Interval(spread.mean, spread.mean - half, spread.mean + half)


def rate_interval(hits: Float[Tensor, "seed prompt"]) -> Interval:
    """Return a share and its interval, which stays in [0, 1].

    Wilson's interval, with the number of independent trials that would give the variance of the two levels. Where all
    trials agree, that variance is 0 and says nothing; then the number of prompts is taken, as if all seeds were one.

    Args:
        hits: 1 where the prompt was classified correctly, else 0.

    Raises:
        ValueError: If there is no seed, or fewer than two prompts. With one seed the interval is over prompts alone.
    """
    spread = _spread(hits)
    rate = spread.mean
    trials = rate * (1 - rate) / spread.variance if spread.variance > 0 else float(hits.shape[1])
    squared = spread.quantile**2 / trials
    centre = (rate + squared / 2) / (1 + squared)
    half = math.sqrt(squared * (rate * (1 - rate) + squared / 4)) / (1 + squared)
    return Interval(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)))


def _spread(values: Float[Tensor, "seed prompt"]) -> _Spread:
    seeds, prompts = values.shape
    if seeds < 1 or prompts < 2:
        raise ValueError(f"an interval needs at least 1 seed and 2 prompts; got {seeds} and {prompts}")
    table = values.double().cpu().numpy()
    by_seed = float(np.var(table.mean(axis=1), ddof=1)) / seeds if seeds > 1 else 0.0
    by_prompt = float(np.var(table.mean(axis=0), ddof=1)) / prompts
    variance = by_seed + by_prompt
    if variance == 0.0 or seeds == 1:
        freedom = float(prompts - 1)
    else:
        freedom = variance**2 / (by_seed**2 / (seeds - 1) + by_prompt**2 / (prompts - 1))
    return _Spread(float(table.mean()), variance, float(stats.t.ppf((1 + _CONFIDENCE) / 2, freedom)))
