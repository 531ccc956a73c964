"""ML-LR (arXiv 2410.04524 v1): one phase, two learning rates."""

from __future__ import annotations

from securetune.defenses.base import MAIN_PHASE, Defense, DefenseContext, ParameterGroup, Phase
from securetune.defenses.registry import register_defense


@register_defense("ml-lr")
class ModularLearningRate(Defense):
    """Modular layer-wise learning rate: Mods_Rob at the base rate, the rest at `learning_rate_ratio` times it.

    The paper gives the direction (sensitive modules slower, down to the order of 1e-4); the two-valued ratio is our
    reading of it. A ratio of 1 is plain fine-tuning; a ratio of 0 freezes the rest instead of training it at rate 0,
    which would still allocate its optimizer state and let its gradients into the clipping norm.
    """

    needs_manifest = True
    source = "arXiv 2410.04524 v1"

    def phases(self, context: DefenseContext) -> list[Phase]:
        """Return the one phase with its two groups (one, if the ratio is 0)."""
        ratio = context.settings.learning_rate_ratio
        groups = [ParameterGroup("robust", context.parameters.robust, context.learning_rate)]
        if ratio > 0:
            groups.append(ParameterGroup("rest", context.parameters.rest, ratio * context.learning_rate))
        return [Phase(MAIN_PHASE, context.main_steps, tuple(groups))]
