"""A control: plain fine-tuning at a lower learning rate."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from securetune.config import Settings
from securetune.defenses.base import MAIN_PHASE, Defense, DefenseContext, ParameterGroup, Phase
from securetune.defenses.registry import register_defense


class LowLearningRateOptions(Settings):
    """Options of `low-lr`.

    Attributes:
        factor: Rate over the base rate, in (0, 1]; 1 is plain fine-tuning. 0.3: a third of the usual rate.
    """

    factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3


@register_defense("low-lr")
class LowLearningRate(Defense):
    """Control: plain fine-tuning at a lower learning rate, which every defense has to beat."""

    source = "control"
    purpose = "control"
    options_type: ClassVar[type[Settings]] = LowLearningRateOptions

    def phases(self, context: DefenseContext) -> list[Phase]:
        """Return the one phase."""
        assert isinstance(self.options, LowLearningRateOptions)
        group = ParameterGroup("all", context.parameters.all, self.options.factor * context.learning_rate)
        return [Phase(MAIN_PHASE, context.main_steps, (group,))]
