"""What an export is about: the phase with which a method begins, unless it treats all parameters alike."""

from __future__ import annotations

from securetune.defenses import Phase
from securetune.errors import ConfigError
from securetune.pipeline.exporting.exported import Rates
from securetune.pipeline.skeletons import TrainingSkeleton


def first_phase(training: TrainingSkeleton) -> Phase:
    """Return the warm-up of a method that has one, else its only phase.

    Raises:
        ConfigError: If it trains everything at one rate, as plain fine-tuning does.
    """
    phase = training.phases[0]
    if len(phase.groups) == 1 and set(phase.groups[0].parameter_names) == set(training.parameters.all):
        raise ConfigError(
            f'"{training.defense.name}" with these settings trains everything at one learning rate, as every tool '
            "does: there is nothing to export"
        )
    return phase


def rates_of(phase: Phase) -> Rates:
    """Return the peak rate of every parameter that trains in a phase."""
    return {name: as_written(group.learning_rate) for group in phase.groups for name in group.parameter_names}


def as_written(rate: float) -> float:
    """Return a rate without the last digits that a product leaves: 2e-06, not 2.0000000000000003e-06."""
    return float(f"{rate:.12g}")


def is_last(training: TrainingSkeleton, phase: Phase) -> bool:
    """Whether no other run follows."""
    return phase is training.phases[-1]
