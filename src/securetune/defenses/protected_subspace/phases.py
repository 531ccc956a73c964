"""The phases and groups of a protected training: those of plain tuning, SWAT or ML-LR, with embeddings told apart.

`other_rate` multiplies whatever rate the schedule gives to embeddings, norms and head, and takes no part in what that
schedule freezes. So with ML-LR's ratio r, they train at r·other_rate times the base rate (at other_rate times it with
`other_parameters: robust`); in SWAT's warm-up they stay frozen, or train at other_rate times its rate if they count as
robust. With `other_rate` 1 and nothing frozen the phases are those of SWAT or ML-LR themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Literal

from securetune.defenses.base import Defense, DefenseContext, ParameterGroup, Phase
from securetune.defenses.ift import PlainFineTuning
from securetune.defenses.ml_lr import ModularLearningRate
from securetune.defenses.swat import SafeWarmUp

Schedule = Literal["plain", "swat", "ml-lr"]

_SCHEDULES: dict[Schedule, type[Defense]] = {
    "plain": PlainFineTuning,
    "swat": SafeWarmUp,
    "ml-lr": ModularLearningRate,
}


def schedule_of(name: Schedule) -> Defense:
    """Return the method whose phases and groups a training has."""
    return _SCHEDULES[name]()


def protected_phases(
    schedule: Defense,
    context: DefenseContext,
    is_projection: Callable[[str], bool],
    other_rate: float,
    frozen: Collection[str],
) -> list[Phase]:
    """Return the schedule's phases, in which everything that is no projection trains at `other_rate` times its rate.

    Args:
        schedule: The method that the phases come from.
        context: The training.
        is_projection: Tells whether a parameter, by its name, belongs to a projection.
        other_rate: Factor in [0, 1]; 0 freezes.
        frozen: Parameters that train in no phase.
    """
    phases = []
    for phase in schedule.phases(context):
        groups = [part for group in phase.groups for part in _parts(group, is_projection, other_rate, frozen)]
        phases.append(replace(phase, groups=tuple(groups)))
    return phases


def _parts(
    group: ParameterGroup, is_projection: Callable[[str], bool], other_rate: float, frozen: Collection[str]
) -> list[ParameterGroup]:
    names = tuple(name for name in group.parameter_names if name not in frozen)
    if other_rate == 1.0:
        return [replace(group, parameter_names=names)] if names else []
    inside = tuple(name for name in names if is_projection(name))
    others = tuple(name for name in names if not is_projection(name))
    is_all = group.name == "all"
    found = []
    if inside:
        found.append(ParameterGroup("projections" if is_all else group.name, inside, group.learning_rate))
    if others and other_rate > 0:
        name = "others" if is_all else f"{group.name}-others"
        found.append(ParameterGroup(name, others, other_rate * group.learning_rate))
    return found
