"""The analysis stage: which modules can change without disturbing the security features.

Source: arXiv 2410.04524, which perturbs one module at a time and watches an unchanged linear classifier of harmful
requests. Ours, because the paper does not say: the perturbation (Gaussian, relative to the root mean square of the
weights), its calibrated size, the intervals, and the closed form that predicts the sampled shift.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from securetune.analysis.agreement import compare_at_small_noise, compare_shifts, root_mean_square_over_last
from securetune.analysis.calibration import Calibration, calibrate_epsilon, grid_point
from securetune.analysis.closed_form import closed_form_shifts
from securetune.analysis.intervals import mean_interval, rate_interval
from securetune.analysis.sweep import SweepLogits, sweep_modules
from securetune.artifacts import ModuleRobustness, RobustnessReport, environment
from securetune.config import AnalysisSettings
from securetune.data.prompts import ProbeSet
from securetune.features.probe import SecurityProbe, fit_probe
from securetune.models import ChatModel, ProjectionModule, map_modules
from securetune.progress import ProgressCallback


def analyze_robustness(
    model: ChatModel, probes: ProbeSet, settings: AnalysisSettings, progress: ProgressCallback | None = None
) -> RobustnessReport:
    """Measure how much each module disturbs the security features when it is perturbed.

    Args:
        model: An aligned chat model. Its weights are perturbed in place and restored bit for bit.
        probes: Harmful and harmless requests for fitting and for scoring.
        settings: Noise, seeds, batch size.
        progress: Told how far it is.

    Raises:
        RunError: If the classifier does not recognise the scored prompts of the intact model.
        ModelError: If the model lacks the needed projections.

    Warns:
        UserWarning: If no noise size tells the modules apart.

    Example:
        >>> from securetune.config import AnalysisSettings, ProbeSettings
        >>> from securetune.data.prompts import load_probes
        >>> from securetune.models import load
        >>> report = analyze_robustness(load(), load_probes(ProbeSettings(), "tiny-world"), AnalysisSettings())
        >>> min(report.modules, key=lambda module: module.accuracy).layer
        0
    """
    seconds: dict[str, float] = {}
    harmful, size = probes.score_harmful, settings.batch_size
    seeds = list(range(settings.seed, settings.seed + settings.noise_seeds))
    modules = map_modules(model.model)
    with _timed(seconds, "classifier"):
        probe = fit_probe(model, probes, size)
    with _timed(seconds, "closed_form"):
        slopes = closed_form_shifts(model, harmful, probe.classifier, 1.0, size)
    with _timed(seconds, "calibration"):
        calibration = _calibrate(model, probes, probe, settings, progress)
    with _timed(seconds, "sweep"):
        logits = sweep_modules(model, harmful, probe.classifier, [calibration.epsilon], seeds, size, progress)
    with _timed(seconds, "small_noise"):
        small = compare_at_small_noise(model, harmful, probe, slopes, settings, progress)
    closed_form = root_mean_square_over_last(calibration.epsilon * slopes)
    sampled = root_mean_square_over_last(logits.shifts()[0].flatten(1))
    return RobustnessReport(
        model=model.identity,
        prompt_set_hash=probes.hash,
        settings=_resolved(settings, calibration),
        epsilon=calibration.epsilon,
        calibration=calibration.grid or [grid_point(calibration.epsilon, logits.hits()[0])],
        classifier=probe.figures,
        closed_form_at_epsilon=compare_shifts(closed_form, sampled, calibration.epsilon, len(seeds)),
        closed_form_small_noise=small,
        modules=[*_entries(modules, logits, sampled, closed_form)],
        duration_seconds=seconds,
        environment=environment(),
    )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _calibrate(
    model: ChatModel,
    probes: ProbeSet,
    probe: SecurityProbe,
    settings: AnalysisSettings,
    progress: ProgressCallback | None,
) -> Calibration:
    """Take the user's noise size, or look for one."""
    if settings.epsilon != "calibrate":
        return Calibration(settings.epsilon, grid=[], discriminates=True)
    return calibrate_epsilon(model, probes.score_harmful, probe.classifier, settings, progress)


def _resolved(settings: AnalysisSettings, calibration: Calibration) -> dict[str, Any]:
    resolved = settings.model_dump(mode="json")
    if settings.epsilon == "calibrate":
        resolved["calibration_discriminates"] = calibration.discriminates
    return resolved


def _entries(
    modules: Sequence[ProjectionModule],
    logits: SweepLogits,
    sampled: Float[Tensor, " module"],
    closed_form: Float[Tensor, " module"],
) -> Iterator[ModuleRobustness]:
    hits, falls = logits.hits()[0], -logits.shifts()[0]
    for index, module in enumerate(modules):
        accuracy, fall = rate_interval(hits[index]), mean_interval(falls[index])
        yield ModuleRobustness(
            name=module.name,
            type=module.type,
            layer=module.layer,
            parameter_count=module.parameter_count,
            accuracy=accuracy.mean,
            accuracy_low=accuracy.low,
            accuracy_high=accuracy.high,
            margin_fall=fall.mean,
            margin_fall_low=fall.low,
            margin_fall_high=fall.high,
            sampled_shift=sampled[index].item(),
            closed_form_shift=closed_form[index].item(),
        )
