"""Choosing ε for the joint test.

Noise on many modules adds up, so the size that tells single modules apart would break any large set, and a search with
it would stop after a few modules. The joint test must refuse an ordinary set of the target size, and leave room for a
better one. The rule:

    ε is the size at which perturbing a *random* set of the target size costs three times the tolerance,
    but no more than half of the way from the intact accuracy down to 1/2.

So a set passes at the target size only if it is clearly more robust than chance. If logits are roughly normal and a
random set's fall is 15 points, a set whose logit shift is 0.6 times the random one's falls by 5.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from securetune.artifacts import RobustnessReport
from securetune.config import SearchSettings
from securetune.search.joint_test import JointTest
from securetune.search.ranking import parameter_fraction, whole_parameters

_FALL_IN_TOLERANCES = 3.0
_LEAST_FALL = 0.03
_RANDOM_SETS = 4
_SEEDS = 2
_RATIO = math.sqrt(2.0)
_MOST_TRIALS = 12
_CHANCE = 0.5


class JointNoise(NamedTuple):
    """The size for the joint test and how it was chosen.

    Attributes:
        epsilon: Relative noise size.
        aimed_accuracy: Accuracy that random sets were to have.
        trials: For each size tried, in rising order: `epsilon` and `random_set_accuracy`.
    """

    epsilon: float
    aimed_accuracy: float
    trials: list[dict[str, float]]


def choose_joint_epsilon(test: JointTest, report: RobustnessReport, settings: SearchSettings) -> JointNoise:
    """Find the size by steps of √2, starting where independent shifts of a set's modules add up to a single one's.

    Args:
        test: The joint test.
        report: The analysis, whose ε sets the start.
        settings: Target share, tolerance and seed.
    """
    sets = random_sets(report, settings.target_fraction, settings.seed)
    fall = min(max(_FALL_IN_TOLERANCES * settings.tolerance, _LEAST_FALL), (test.intact_accuracy - _CHANCE) / 2)
    aimed = test.intact_accuracy - fall
    seeds = range(settings.seed, settings.seed + _SEEDS)
    epsilon = min(report.epsilon / math.sqrt(len(sets[0])), test.largest_size)
    found: dict[float, float] = {}
    up: bool | None = None
    for _ in range(_MOST_TRIALS):
        found[epsilon] = sum(test.accuracy(names, epsilon, seeds) for names in sets) / len(sets)
        step_up = found[epsilon] > aimed
        if up is not None and step_up != up:
            break
        up = step_up
        following = min(epsilon * (_RATIO if step_up else 1 / _RATIO), test.largest_size)
        if following == epsilon:
            break
        epsilon = following
    best = min(found, key=lambda size: (abs(found[size] - aimed), size))
    trials = [{"epsilon": size, "random_set_accuracy": found[size]} for size in sorted(found)]
    return JointNoise(best, aimed, trials)


def random_sets(report: RobustnessReport, target_fraction: float, seed: int) -> Sequence[list[str]]:
    """Draw four random sets that hold at least the target share of the parameters."""
    generator = random.Random(seed)
    units = whole_parameters(report.modules)
    sets = []
    for _ in range(_RANDOM_SETS):
        chosen: list[str] = []
        for unit in generator.sample(units, len(units)):
            if parameter_fraction(report, chosen) >= target_fraction:
                break
            chosen += unit
        sets.append(chosen)
    return sets
