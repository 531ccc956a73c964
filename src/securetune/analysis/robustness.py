"""The analysis stage: which modules can change without disturbing the security features.

Source: arXiv 2410.04524, which perturbs one module at a time and watches an unchanged linear classifier of harmful
requests. Ours, because the paper does not say: the perturbations and their calibrated size, the refusal margin, the
drift through the layers, the intervals, the controls, and the closed form that predicts the sampled shift.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from securetune.analysis.agreement import compare_at_small_noise, compare_shifts, root_mean_square_over_last
from securetune.analysis.calibration import Calibration, calibrate_epsilon, grid_point
from securetune.analysis.controls import analysis_controls, retrained_accuracies
from securetune.analysis.module_pass import Execution
from securetune.analysis.module_scores import ScoreColumns, module_entries
from securetune.analysis.sweep import SweepResult, sweep_modules
from securetune.artifacts import (
    AnalysisControl,
    ClosedFormAgreement,
    RefusalOpenings,
    RobustnessReport,
    environment,
)
from securetune.config import AnalysisSettings
from securetune.data.prompts import ProbeSet
from securetune.errors import ConfigError
from securetune.features.closed_form import closed_form_shifts, directional_shifts
from securetune.features.hidden_states import make_batches
from securetune.features.perturbation import (
    GaussianPerturbation,
    MeanAblation,
    Perturbation,
    UpdatePerturbation,
    mean_outputs,
)
from securetune.features.probe import SecurityProbe, fit_probe
from securetune.features.readout import (
    Openings,
    Readout,
    RefusalMargin,
    find_openings,
    openings_from_phrases,
    refusal_margin,
)
from securetune.models import ChatModel, map_modules
from securetune.processes import Processes
from securetune.progress import ProgressCallback, silent


def analyze_robustness(
    model: ChatModel,
    probes: ProbeSet,
    settings: AnalysisSettings,
    progress: ProgressCallback | None = None,
    perturbation: Perturbation | None = None,
    partial_results: Path | None = None,
    processes: Processes | None = None,
) -> RobustnessReport:
    """Measure how much each module disturbs the security features when it is perturbed.

    Args:
        model: An aligned chat model. Its weights are perturbed in place and restored bit for bit.
        probes: Harmful and harmless requests for fitting and for scoring.
        settings: Kind and size of the perturbation, seeds, controls, batch size.
        progress: Told how far it is.
        perturbation: Needed for `update`, whose fine-tuning runs are the caller's; otherwise made from the settings.
        partial_results: Folder for what is finished; an analysis that was interrupted goes on from there and gives the
            same numbers, bit for bit. Remove it with `remove_partial_results` once the report is safe. None: an
            interruption loses everything.
        processes: Of `launched_processes`: each calls this with its own copy of the model, measures its share of the
            modules, and gets the whole report. None: this process alone.

    Raises:
        ConfigError: If `update` is asked for without its runs, one list of openings without the other, or a
            perturbation is given that the settings do not name.
        RunError: If the classifier does not recognise the scored prompts of the intact model, or the model's states are
            not finite numbers.
        ModelError: If the model lacks the needed projections.

    Warns:
        UserWarning: If no size tells the modules apart, or the refusal margin is not defined.

    Example:
        >>> from securetune.config import AnalysisSettings, ProbeSettings
        >>> from securetune.data.prompts import load_probes
        >>> from securetune.models import load
        >>> report = analyze_robustness(load(), load_probes(ProbeSettings(), "tiny-world"), AnalysisSettings())
        >>> min(report.modules, key=lambda module: module.accuracy).layer
        0
    """
    kind = perturbation or make_perturbation(model, probes, settings)
    if kind.name != settings.perturbation:
        raise ConfigError(
            f"analysis.perturbation is {settings.perturbation}, but the perturbation given is {kind.name}"
        )
    execution = Execution(progress or silent, partial_results, processes or Processes())
    found = _measure(model, probes, settings, kind, execution)
    return RobustnessReport(
        model=model.identity,
        prompt_set_hash=probes.hash,
        settings=_resolved(settings, found.calibration),
        epsilon=found.calibration.epsilon,
        calibration=found.calibration.grid or [grid_point(found.calibration.epsilon, found.hits[0])],
        classifier=found.probe.figures,
        closed_form_at_epsilon=_agreement_at_epsilon(found),
        closed_form_small_noise=found.small_noise[0],
        refusal_openings=_described(model, probes, found.openings, found.margin, found.sweep),
        refusal_closed_form_small_noise=found.small_noise[1] if found.margin else None,
        layer_accuracies=tuple(found.probe.layer_accuracies),
        controls=tuple(found.controls),
        modules=[*module_entries(map_modules(model.model), found.columns, found.sweep.drift, found.retrained)],
        duration_seconds=found.seconds,
        environment=environment(),
    )


class _Measured(NamedTuple):
    """Everything that the report is made of."""

    probe: SecurityProbe
    openings: Openings | None
    margin: RefusalMargin | None
    calibration: Calibration
    sweep: SweepResult
    columns: list[ScoreColumns]
    small_noise: list[ClosedFormAgreement]
    retrained: Float[Tensor, " module"] | None
    controls: list[AnalysisControl]
    seconds: dict[str, float]

    @property
    def hits(self) -> Float[Tensor, "size module seed prompt"]:
        """Whether the harmfulness classifier is still right."""
        return self.sweep.readouts[self.probe.classifier.name].hits()


def _measure(
    model: ChatModel, probes: ProbeSet, settings: AnalysisSettings, kind: Perturbation, execution: Execution
) -> _Measured:
    seconds: dict[str, float] = {}
    harmful, size, seeds = probes.score_harmful, settings.batch_size, _seeds(settings)
    with _timed(seconds, "classifier"):
        probe = fit_probe(model, probes, size)
        openings = _openings(model, probes, settings)
    margin = refusal_margin(model, openings) if openings else None
    readouts: list[Readout] = [probe.classifier] if margin is None else [probe.classifier, margin]
    with _timed(seconds, "closed_form"):
        slopes = [_slopes(model, probes, readout, kind, settings) for readout in readouts]
    with _timed(seconds, "calibration"):
        calibration = _calibrate(model, probes, probe, kind, settings, execution)
    epsilon, layers = calibration.epsilon, probe.layer_classifiers
    with _timed(seconds, "sweep"):
        sweep = sweep_modules(
            model, harmful, readouts, [epsilon], seeds, size, "perturbing modules", kind, layers, execution=execution
        )
    columns = [
        ScoreColumns.of(sweep.readouts[readout.name], None if slope is None else epsilon * slope)
        for readout, slope in zip(readouts, slopes, strict=True)
    ]
    with _timed(seconds, "small_noise"):
        small = [compare_at_small_noise(model, harmful, readout, settings, execution) for readout in readouts]
    retrained, controls = None, []
    if settings.controls:
        with _timed(seconds, "controls"):
            retrained = retrained_accuracies(model, probes, kind, epsilon, seeds, size, execution)
            accuracies = columns[0].hits.mean(dim=(1, 2))
            controls = analysis_controls(model, probes, probe, retrained, accuracies, settings.seed, size)
    return _Measured(probe, openings, margin, calibration, sweep, columns, small, retrained, controls, seconds)


def _seeds(settings: AnalysisSettings) -> list[int]:
    return list(range(settings.seed, settings.seed + settings.noise_seeds))


def _agreement_at_epsilon(found: _Measured) -> ClosedFormAgreement | None:
    """Compare closed form and sampling at the size of the sweep, if the perturbation has a closed form."""
    features = found.columns[0]
    if features.closed_form is None:
        return None
    draws = features.hits.shape[1]
    return compare_shifts(features.closed_form, features.sampled, found.calibration.epsilon, draws)


def make_perturbation(model: ChatModel, probes: ProbeSet, settings: AnalysisSettings) -> Perturbation:
    """Make the perturbation that the settings name, if it needs no training.

    Raises:
        ConfigError: If it is `update`.
    """
    if settings.perturbation == "gaussian":
        return GaussianPerturbation()
    if settings.perturbation == "mean":
        prompts = [*probes.fit_harmful, *probes.fit_harmless]
        batches = make_batches(model.tokenizer, prompts, settings.batch_size, model.model.device)
        return MeanAblation(mean_outputs(model.model, map_modules(model.model), batches))
    raise ConfigError("analysis.perturbation: update needs fine-tuning runs on your data. Give --data FILE.")


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _openings(model: ChatModel, probes: ProbeSet, settings: AnalysisSettings) -> Openings | None:
    """Find what refusals and answers begin with, or warn that it cannot be told."""
    if settings.refusal_openings is not None or settings.compliance_openings is not None:
        return openings_from_phrases(model, settings.refusal_openings or (), settings.compliance_openings or ())
    found = find_openings(model, probes.fit_harmful, probes.fit_harmless, settings.batch_size)
    if found.usable:
        return found
    warnings.warn(
        "the refusal margin is not measured: the first tokens of the answers to harmful and harmless prompts "
        f"do not differ enough (typical refusal openings hold {found.refusal_mass:.0%} of the probability, typical "
        f"answers {found.compliance_mass:.0%}). Give analysis.refusal_openings and compliance_openings.",
        stacklevel=3,
    )
    return None


def _slopes(
    model: ChatModel, probes: ProbeSet, readout: Readout, kind: Perturbation, settings: AnalysisSettings
) -> Float[Tensor, "module prompt"] | None:
    """Return the closed-form shifts at size 1, or None if the perturbation has no closed form."""
    prompts, size = probes.score_harmful, settings.batch_size
    if isinstance(kind, GaussianPerturbation):
        return closed_form_shifts(
            model, prompts, readout, 1.0, size, activation_checkpointing=settings.activation_checkpointing
        )
    if isinstance(kind, UpdatePerturbation):
        runs = [directional_shifts(model, prompts, readout, update, 1.0, size) for update in kind.updates]
        return root_mean_square_over_last(torch.stack(runs, dim=-1))
    return None


def _calibrate(
    model: ChatModel,
    probes: ProbeSet,
    probe: SecurityProbe,
    kind: Perturbation,
    settings: AnalysisSettings,
    execution: Execution,
) -> Calibration:
    """Take the user's size, or look for one."""
    if settings.epsilon != "calibrate":
        return Calibration(settings.epsilon, grid=[], discriminates=True)
    return calibrate_epsilon(model, probes.score_harmful, probe.classifier, settings, kind, execution)


def _resolved(settings: AnalysisSettings, calibration: Calibration) -> dict[str, Any]:
    resolved = settings.model_dump(mode="json")
    if settings.epsilon == "calibrate":
        resolved["calibration_discriminates"] = calibration.discriminates
    return resolved


def _described(
    model: ChatModel,
    probes: ProbeSet,
    openings: Openings | None,
    margin: RefusalMargin | None,
    sweep: SweepResult,
) -> RefusalOpenings | None:
    if openings is None or margin is None:
        return None
    return RefusalOpenings(
        refusal=list(margin.refusal_openings),
        compliance=list(margin.compliance_openings),
        refusal_mass=openings.refusal_mass,
        compliance_mass=openings.compliance_mass,
        intact_margin=sweep.readouts[margin.name].intact.mean().item(),
    )
