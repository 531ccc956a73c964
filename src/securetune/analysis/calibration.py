"""Choosing the size of the perturbation at which the sweep tells modules apart."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from securetune.analysis.module_pass import Execution
from securetune.analysis.sweep import sweep_modules
from securetune.config import AnalysisSettings
from securetune.data.prompts import Prompt
from securetune.features.classifier import SafetyClassifier
from securetune.features.perturbation import GaussianPerturbation, Perturbation
from securetune.models import ChatModel

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
    perturbation: Perturbation | None = None,
    execution: Execution | None = None,
) -> Calibration:
    """Try a grid of sizes and take the one at which the modules' accuracies are spread the widest.

    Too small, and every module is intact; too large, and every module is broken; in between they differ. Two seeds and
    24 prompts, evenly taken from those given, are enough for this choice.

    Args:
        chat: The model.
        prompts: Harmful requests.
        classifier: Fitted on the intact model.
        settings: For the seed and the batch size.
        perturbation: None: Gaussian noise.
        execution: Progress, and where finished modules are kept.

    Warns:
        UserWarning: If no size spreads the accuracies.
    """
    sample = evenly_taken(prompts, _PROMPTS)
    seeds = list(range(settings.seed, settings.seed + _SEEDS))
    size, what = settings.batch_size, "calibrating the perturbation"
    kind = perturbation or GaussianPerturbation()
    found = sweep_modules(chat, sample, [classifier], kind.grid, seeds, size, what, kind, execution=execution)
    hits = found.readouts[classifier.name].hits()
    grid = [grid_point(epsilon, rows) for epsilon, rows in zip(kind.grid, hits, strict=True)]
    best = max(grid, key=lambda point: point["accuracy_spread"])
    discriminates = best["accuracy_spread"] >= _LEAST_SPREAD
    if not discriminates:
        warnings.warn(_no_spread_sentence(kind.grid, best["accuracy_spread"]), stacklevel=2)
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
    from_draws = by_draw.var(dim=1).mean().item() / hits.shape[1] if hits.shape[1] > 1 else 0.0
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


def _no_spread_sentence(grid: Sequence[float], spread: float) -> str:
    return (
        f"no size of the perturbation between {grid[0]:g} and {grid[-1]:g} tells the modules apart: their "
        f"accuracies differ by a standard deviation of {spread:.3f} at most (at least {_LEAST_SPREAD} is needed). "
        "The order of the modules rests on the margin alone; give more probe prompts or another epsilon."
    )
