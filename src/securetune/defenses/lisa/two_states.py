"""Lisa (arXiv 2405.18641): steps on alignment data and on the user's take turns, each held to where the other ended.

Fidelity to algorithm 2: K1 alignment steps minimise f(w) + rho/2·||w - w_t||², then K2 steps on the user's data h(w) +
rho/2·||w - v_t||², where w_t and v_t are the weights with which a state begins. The proximal term is added to the
gradients, rho·(w - anchor), once an optimizer step and before clipping; as a part of the loss it has the same gradient.
All steps share one optimizer and one learning-rate schedule, as in the authors' code, which begins with alignment too.

Ours: the user's steps alone count as the steps of the training, so that methods are compared on the same number of rows
and in the same order; alignment steps come on top, and the training's last state is the user's. In the authors' code
alignment steps are among the steps, each skips a batch of the user's data, and there is no proximal term in the first
tenth of them, which the paper does not have. The alignment data is a hundred refusals, not thousands of safe answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from securetune.config import PositiveInt, Settings
from securetune.data.conversations import Conversation
from securetune.data.prompts import Prompt
from securetune.defenses.alignment_options import ALIGNMENT, AlignmentOptions, asked_in
from securetune.defenses.base import Defense, DefenseContext, Phase, plain_phase
from securetune.defenses.optimizer_step import OptimizerStep
from securetune.defenses.registry import register_defense
from securetune.errors import RunError


class LisaOptions(AlignmentOptions):
    """Options of `lisa`.

    Attributes:
        alignment_steps: K1, steps on the alignment data before each `finetune_steps` on the user's (≥ 0).
        finetune_steps: K2 (≥ 1). The paper's 100 and 900 are for tens of thousands of steps; here as often in a
            training of a hundred.
        proximal: rho (≥ 0): how strongly each state is held to where it began. 1, the paper's.
    """

    alignment_steps: Annotated[int, Field(ge=0)] = 1
    finetune_steps: PositiveInt = 9
    proximal: Annotated[float, Field(ge=0.0)] = 1.0


@register_defense("lisa")
class LazySafetyAlignment(Defense):
    """Lisa: steps on refusals in between, and a proximal term towards where the other state ended.

    Without alignment steps and proximal term it is plain fine-tuning. It keeps one copy of all that trains. Sharded
    weights (FSDP2, DeepSpeed ZeRO) are refused.
    """

    source = "arXiv 2405.18641"
    options_type: ClassVar[type[Settings]] = LisaOptions

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._anchor: dict[str, Tensor] = {}
        self._alignment_steps = 0

    @property
    def own(self) -> LisaOptions:
        """The options, with their type."""
        assert isinstance(self.options, LisaOptions)
        return self.options

    def alignment_rows(self, model_name: str) -> dict[str, Sequence[Conversation]]:
        """Return the refusals, if any step is taken on them."""
        return {ALIGNMENT: self.own.refusals(model_name)} if self.own.alignment_steps else {}

    def prompts_used(self, model_name: str) -> list[Prompt]:
        """Return the requests that are refused there."""
        return asked_in(self.alignment_rows(model_name).get(ALIGNMENT, ()))

    def before_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Forget an earlier training."""
        self._anchor = {}

    def phases(self, context: DefenseContext) -> list[Phase]:
        """Return the one phase, with the alignment steps in it."""
        turns = math.ceil(context.main_steps / self.own.finetune_steps)
        plain = plain_phase(context)
        self._alignment_steps = turns * self.own.alignment_steps
        return [Phase(plain.name, plain.steps, plain.groups, alignment_steps=self._alignment_steps)]

    def before_step(self, step: OptimizerStep) -> None:
        """Change the state where it is time: a whole alignment state comes before each of the user's."""
        turn, within = divmod(step.number, self.own.finetune_steps)
        if within > 0:
            return
        self._keep_anchor(step.model)
        for number in range(self.own.alignment_steps):
            loss = step.take_alignment_step(ALIGNMENT, turn * self.own.alignment_steps + number)
            step.log("alignment_loss", loss)
        if self.own.alignment_steps:
            self._keep_anchor(step.model)

    @torch.no_grad()
    def _keep_anchor(self, model: nn.Module) -> None:
        if self.own.proximal > 0:
            self._anchor = {name: weight.detach().clone() for name, weight in _trained(model)}

    @torch.no_grad()
    def adjust_gradients(self, step: OptimizerStep) -> None:
        """Add the gradient of the proximal term.

        Raises:
            RunError: If the training goes on within a state and its anchor was not saved.
        """
        if self.own.proximal == 0:
            return
        for name, weight in _trained(step.model):
            if name not in self._anchor:
                raise RunError(f"lisa: the checkpoint has no anchor of {name}. Start again from the beginning.")
            if weight.grad is not None:
                weight.grad.add_(weight - self._anchor[name].to(weight.device), alpha=self.own.proximal)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the anchor, by the names of the weights."""
        return dict(self._anchor)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the anchor back."""
        self._anchor = dict(state)

    def notes(self) -> list[str]:
        """Say how many steps there are on the alignment data."""
        if not self._alignment_steps:
            return []
        return [
            f"lisa takes {self._alignment_steps} optimizer steps on refusals besides those on the data: "
            f"{self.own.alignment_steps} before each {self.own.finetune_steps}."
        ]


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
