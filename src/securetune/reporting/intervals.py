"""Intervals over seeds and prompts.

Seeds and prompts are crossed: every seed's model answers the same prompts. So a resample draws seeds, and prompts once
for all of them; drawing prompts anew for each seed would treat 3 seeds × 100 prompts as 300 different prompts, and the
interval would be too narrow. With few seeds a bootstrap still understates what other seeds would give: three are the
least that should be shown, and each seed's own value is reported beside the interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from securetune.artifacts import MetricDifference, MetricSummary, RateEstimate

RESAMPLES = 2000
"""The bounds then vary by about 2 % of the interval's width from one seed of the resampling to the next."""

Table = Float[np.ndarray, "_seed _prompt"]
"""Outcomes with one row a seed; tables of one comparison may differ in both axes, hence the unchecked names."""


def summarize(tables: Sequence[Table], is_rate: bool) -> MetricSummary:
    """Average outcomes over seeds and prompts, with a 95 % interval.

    Several seeds: two-level bootstrap, over seeds and prompts. One seed: over prompts, for a rate on one suite Wilson's
    interval. A rate whose outcomes are all the same has Wilson's interval for the prompts of one seed, because no
    resampling can show what was not seen.

    Args:
        tables: One table a suite, with the same seeds; the metric is the unweighted mean over suites.
        is_rate: The outcomes are 0 or 1.

    Raises:
        ValueError: If there is no suite, no seed or no prompt.
    """
    if not tables or any(table.size == 0 for table in tables):
        raise ValueError("a metric needs at least one suite, seed and prompt; got none")
    per_seed = np.mean([table.mean(axis=1) for table in tables], axis=0)
    low, high = _interval(tables, is_rate)
    return MetricSummary(mean=float(per_seed.mean()), low=low, high=high, per_seed=per_seed.tolist())


def difference(method: Sequence[Table], baseline: Sequence[Table]) -> MetricDifference:
    """Compare a method with the baseline on the same prompts.

    Both answer the same prompts, so a resample draws the prompts once for both; seeds are drawn for each on its own.

    Args:
        method: One table a suite.
        baseline: The same suites and prompts; the number of seeds may differ.

    Raises:
        ValueError: If the suites or the numbers of prompts differ.
    """
    generator = np.random.default_rng(0)
    draws = np.zeros(RESAMPLES)
    for ours, theirs in zip(method, baseline, strict=True):
        if ours.shape[1] != theirs.shape[1]:
            raise ValueError(f"both must have the same prompts; got {ours.shape[1]} and {theirs.shape[1]}")
        prompts = _weights(generator, ours.shape[1])
        draws += _resampled(ours, _weights(generator, len(ours)), prompts)
        draws -= _resampled(theirs, _weights(generator, len(theirs)), prompts)
    low, high = np.percentile(draws / len(method), [2.5, 97.5])
    means = [np.mean([table.mean() for table in tables]) for tables in (method, baseline)]
    return MetricDifference(mean=float(means[0] - means[1]), low=float(low), high=float(high))


def _interval(tables: Sequence[Table], is_rate: bool) -> tuple[float, float]:
    first = tables[0]
    constant = all(np.all(table == first[0, 0]) for table in tables)
    if is_rate and (constant or (len(tables) == 1 and len(first) == 1)):
        prompts = sum(table.shape[1] for table in tables)
        successes = round(float(np.mean([table.mean() for table in tables])) * prompts)
        estimate = RateEstimate.from_counts(successes, prompts)
        return estimate.low, estimate.high
    generator = np.random.default_rng(0)
    seeds = _weights(generator, len(first))
    draws = np.mean([_resampled(table, seeds, _weights(generator, table.shape[1])) for table in tables], axis=0)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _weights(generator: np.random.Generator, count: int) -> Float[np.ndarray, "resample item"]:
    """Return how often each item is drawn in each resample, as a share."""
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def _resampled(
    table: Table, seeds: Float[np.ndarray, "resample seed"], prompts: Float[np.ndarray, "resample prompt"]
) -> Float[np.ndarray, " resample"]:
    return ((seeds @ table) * prompts).sum(axis=1)
