"""SWAT (arXiv 2410.04524 v2): two phases, each with an optimizer and a schedule of its own."""

from __future__ import annotations

from securetune.config import TrainingSettings
from securetune.defenses.base import MAIN_PHASE, Defense, DefenseContext, ParameterGroup, Phase, plain_phase
from securetune.defenses.registry import register_defense

WARMUP_PHASE = "warmup"

_WARMUP_SEED_OFFSET = 1_000_003
"""Order of the data in the warm-up; far from the seeds 0, 1, 2, … that people use, so no two runs share an order."""


@register_defense("swat")
class SafeWarmUp(Defense):
    """Secure tuning: warm up Mods_Rob alone, then train everything on the full schedule.

    Our choices where the paper is silent: in the warm-up the others are frozen; optimizer and schedule start fresh in
    the main phase, which is plain fine-tuning step for step, in the same data order. No warm-up is plain fine-tuning.
    """

    needs_manifest = True
    source = "arXiv 2410.04524 v2"

    def phases(self, context: DefenseContext) -> list[Phase]:
        """Return the warm-up, if it has any steps, and the main phase."""
        main = plain_phase(context)
        steps = warmup_phase_steps(context.main_steps, context.settings)
        if steps == 0:
            return [main]
        rate = context.settings.warmup_phase_learning_rate or context.learning_rate
        group = ParameterGroup("robust", context.parameters.robust, rate)
        return [Phase(WARMUP_PHASE, steps, (group,), _WARMUP_SEED_OFFSET), main]

    def phase_steps(self, main_steps: int, settings: TrainingSettings) -> dict[str, int]:
        """Return the steps of the warm-up, if it has any, and of the main phase."""
        steps = warmup_phase_steps(main_steps, settings)
        return {**({WARMUP_PHASE: steps} if steps else {}), MAIN_PHASE: main_steps}


def warmup_phase_steps(main_steps: int, settings: TrainingSettings) -> int:
    """Return the warm-up's optimizer steps; unset, half as many as the main phase has, and at least one."""
    chosen = settings.warmup_phase_steps
    return max(1, main_steps // 2) if chosen is None else chosen
