"""Two models on the same prompts: tests and intervals that use the pairing.

Notation: of n prompts, b have the outcome (such as "attack succeeded") under the model alone, c under the reference
alone. The difference of the two rates is (b − c) / n; prompts on which both agree say nothing about its sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest

from securetune.artifacts import Interval, normal_quantile
from securetune.reporting.intervals import Table


class Discordant(NamedTuple):
    """Prompts on which two models differ.

    Attributes:
        only_here: The outcome under the model alone (b).
        only_reference: Under the reference alone (c).
    """

    only_here: int
    only_reference: int


def mcnemar_p(discordant: Discordant) -> float:
    """Return the two-sided p value of McNemar's exact test: that b and c come from a fair coin.

    Example:
        >>> mcnemar_p(Discordant(0, 5))
        0.0625
    """
    total = sum(discordant)
    return 1.0 if total == 0 else float(binomtest(discordant.only_here, total, 0.5).pvalue)


SIGN_FLIPS = 9999
"""Random assignments of the signs; with the observed one they make the least p value 1 in 10,000."""


def sign_flip_p(differences: Sequence[Float[np.ndarray, " _prompt"]]) -> float:
    """Return the two-sided p value of a permutation test: that each prompt's difference is as likely the other way.

    The unit is the prompt: its difference is that of the two models' means over their seeds. So the test speaks of
    other prompts for these very seeds; how much seeds differ is in the interval, not here.

    Args:
        differences: One array a suite; the statistic is the unweighted mean over suites.

    Example:
        >>> sign_flip_p([np.zeros(4)])
        1.0
    """
    scaled = np.concatenate([values / (len(values) * len(differences)) for values in differences])
    scaled = scaled[scaled != 0]
    observed = abs(scaled.sum())
    generator = np.random.default_rng(0)
    reached = 0
    for begin in range(0, SIGN_FLIPS, 1000):
        signs = generator.choice([-1.0, 1.0], size=(min(1000, SIGN_FLIPS - begin), len(scaled)))
        reached += int(np.sum(np.abs(signs @ scaled) >= observed - 1e-12))
    return (1 + reached) / (1 + SIGN_FLIPS)


def matched_interval(discordant: Discordant, pairs: int) -> Interval:
    """Return Agresti and Min's 95 % interval of a difference of matched rates.

    Wald's interval after half an observation is added to each of the four cells (Agresti and Min, Statistics in
    Medicine 24, 2005): near its level also for few prompts, and not empty where the two models never differ, where a
    bootstrap would claim certainty.

    Args:
        discordant: b and c.
        pairs: n, at least 1.

    Raises:
        ValueError: If there are no pairs.
    """
    b, c = discordant
    return paired_interval(float(b - c), float(b + c), float(pairs))


def paired_interval(total: float, squares: float, pairs: float, confidence: float = 0.95) -> Interval:
    """Return the interval of a mean of paired differences that lie in [-1, 1].

    For differences of -1, 0 and 1 it is Agresti and Min's. Others, such as those of ratings, are given the same
    pseudo-observations (half of one at each end, one in the middle), so that it is never empty either.

    Args:
        total: Sum of the differences; need not be whole, so that the interval of a larger sample alike can be foreseen.
        squares: Sum of their squares.
        pairs: How many there are (> 0).
        confidence: Level of the two-sided interval, in (0, 1).

    Raises:
        ValueError: If there are no pairs.
    """
    if pairs <= 0:
        raise ValueError(f"an interval needs at least one pair; got {pairs:g}")
    count = pairs + 2
    half = normal_quantile(confidence) * math.sqrt(max(0.0, squares + 1 - total**2 / count)) / count
    return Interval(max(-1.0, total / count - half), min(1.0, total / count + half))


def discordant_prompts(here: Float[np.ndarray, " prompt"], there: Float[np.ndarray, " prompt"]) -> Discordant:
    """Count the prompts on which two models differ; outcomes are 0 or 1."""
    return Discordant(int(np.sum(here > there)), int(np.sum(here < there)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values after Holm's step-down correction, in the order given.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def told_by_all(tables: Sequence[Table]) -> list[Table]:
    """Leave out the prompts on which any of the models has no verdict (NaN); they must share their prompts."""
    told = np.all([~np.isnan(table).any(axis=0) for table in tables], axis=0)
    return [table[:, told] for table in tables]
