"""Choosing ε, the relative noise size at which the sweep tells modules apart."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from securetune.analysis.sweep import sweep_modules
from securetune.config import AnalysisSettings
from securetune.data.prompts import Prompt
from securetune.features.classifier import SafetyClassifier
from securetune.models import ChatModel
from securetune.progress import ProgressCallback

EPSILON_GRID = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Relative noise sizes that are tried. None larger, which is our choice: noise many times the weights replaces a
module instead of perturbing it, and the spread alone would always ask for more. On tiny world (16 seeds) it is 0.02 at
2, 0.11 at 8, 0.22 at 32 and 0.28 at 200. But the shift stays in proportion to the noise only up to about 8: closed form
/ sampled is 0.94, 0.98, 1.72 and 8.6, the rank correlation of the two 0.96, 0.94, 0.79 and 0.52. Beyond, the accuracies
tell which way the noise pointed."""

_SEEDS = 2
_PROMPTS = 24
_LEAST_SPREAD = 0.02


class Calibration(NamedTuple):
    """The chosen size and how it was chosen.

    Attributes:
        epsilon: The size of the grid at which the modules' accuracies are spread the widest.
        grid: For each size tried, in rising order, what `grid_point` gives.
        discriminates: Whether the accuracies are spread at all (standard deviation of at least 2 points) at `epsilon`.
    """

    epsilon: float
    grid: list[dict[str, float]]
    discriminates: bool


def calibrate_epsilon(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    classifier: SafetyClassifier,
    settings: AnalysisSettings,
    progress: ProgressCallback | None = None,
) -> Calibration:
    """Try a geometric grid of sizes and take the one at which the modules' accuracies are spread the widest.

    Too small, and every module is intact; too large, and every module is broken; in between they differ. Two seeds and
    24 prompts, evenly taken from those given, are enough for this choice.

    Args:
        chat: The model.
        prompts: Harmful requests.
        classifier: Fitted on the intact model.
        settings: For the seed and the batch size.
        progress: Told how far it is.

    Warns:
        UserWarning: If no size spreads the accuracies.
    """
    sample = evenly_taken(prompts, _PROMPTS)
    seeds = list(range(settings.seed, settings.seed + _SEEDS))
    size, what = settings.batch_size, "calibrating the noise"
    hits = sweep_modules(chat, sample, classifier, EPSILON_GRID, seeds, size, progress, what).hits()
    grid = [grid_point(epsilon, rows) for epsilon, rows in zip(EPSILON_GRID, hits, strict=True)]
    best = max(grid, key=lambda point: point["accuracy_spread"])
    discriminates = best["accuracy_spread"] >= _LEAST_SPREAD
    if not discriminates:
        warnings.warn(_no_spread_sentence(best["accuracy_spread"]), stacklevel=2)
    return Calibration(best["epsilon"], grid, discriminates)


def grid_point(epsilon: float, hits: Float[Tensor, "module seed prompt"]) -> dict[str, float]:
    """Summarise over modules what one noise size did to their accuracies.

    Returns:
        `epsilon`; over modules the `mean_accuracy`, `min_accuracy` and `max_accuracy`; and `accuracy_spread`, the
        standard deviation over modules beyond what different draws of noise on the same module explain. Without that
        correction, large noise looks discriminating only because its draws differ.
    """
    by_draw = hits.mean(dim=2)
    accuracies = by_draw.mean(dim=1)
    from_draws = by_draw.var(dim=1).mean().item() / hits.shape[1]
    return {
        "epsilon": epsilon,
        "mean_accuracy": accuracies.mean().item(),
        "accuracy_spread": math.sqrt(max(0.0, accuracies.var().item() - from_draws)),
        "min_accuracy": accuracies.min().item(),
        "max_accuracy": accuracies.max().item(),
    }


def evenly_taken(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Take `count` prompts at even distances, or all if there are not more."""
    step = max(1.0, len(prompts) / count)
    return [prompts[math.floor(place * step)] for place in range(min(count, len(prompts)))]


def _no_spread_sentence(spread: float) -> str:
    return (
        f"no noise size between {EPSILON_GRID[0]:g} and {EPSILON_GRID[-1]:g} tells the modules apart: their "
        f"accuracies differ by a standard deviation of {spread:.3f} at most (at least {_LEAST_SPREAD} is needed). "
        "The order of the modules rests on the margin alone; give more probe prompts or another epsilon."
    )
