"""A control: only Mods_Rob trains, throughout."""

from __future__ import annotations

from securetune.defenses.base import MAIN_PHASE, Defense, DefenseContext, ParameterGroup, Phase
from securetune.defenses.registry import register_defense


@register_defense("freeze-rest")
class FreezeRest(Defense):
    """Control: Mods_Rob alone trains, everything else is frozen throughout.

    It tells what SWAT's second phase adds to its warm-up; ML-LR with a ratio of 0 is the same.
    """

    needs_manifest = True
    source = "control"
    purpose = "control"

    def phases(self, context: DefenseContext) -> list[Phase]:
        """Return the one phase."""
        group = ParameterGroup("robust", context.parameters.robust, context.learning_rate)
        return [Phase(MAIN_PHASE, context.main_steps, (group,))]
