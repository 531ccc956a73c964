"""SafeGrad (arXiv 2508.07172): the part of the user's gradient that works against alignment is taken out.

Let u be the gradient of the user's loss, and a that of the alignment loss KL(start model || model) on harmful requests,
each over all that trains, as one vector. Where u·a < 0 (they conflict), u ← u - (u·a / a·a) a; the step is then taken
along u + rho·a.

Fidelity: the test and the projection are global, once an optimizer step, and the divergence points from the start model
to the model, as in algorithm 1. The paper's text was not at hand in full: that the divergence is averaged over the
tokens of a refusal, at a temperature of 1, and that the alignment batch is as large as the user's, is our choice. The
gradients are combined before clipping and before the optimizer, so that Adam scales what is left of them. With
accumulation there is one alignment batch an optimizer step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn

from securetune.config import Settings
from securetune.data.conversations import Conversation
from securetune.data.prompts import Prompt
from securetune.defenses.alignment_options import ALIGNMENT, AlignmentOptions, asked_in
from securetune.defenses.base import Defense, DefenseContext
from securetune.defenses.optimizer_step import Batch, OptimizerStep
from securetune.defenses.registry import register_defense

_IGNORED = -100


class GradientSurgeryOptions(AlignmentOptions):
    """Options of `safegrad`.

    Attributes:
        alignment_weight: rho (≥ 0): weight of the alignment gradient in the step. 1, the paper's.
        surgery: Whether the conflicting part is taken out. False with a weight of 0 is plain fine-tuning, with another
            one the sum of both losses.
    """

    alignment_weight: Annotated[float, Field(ge=0.0)] = 1.0
    surgery: bool = True


@register_defense("safegrad")
class GradientSurgery(Defense):
    """SafeGrad: what in a gradient works against alignment is taken out, and alignment's own gradient added.

    It keeps the start model besides the model (adapters that have learned nothing yet are switched off instead), and
    one more copy of the gradients. Sharded weights (FSDP2, DeepSpeed ZeRO) are refused.
    """

    source = "arXiv 2508.07172"
    options_type: ClassVar[type[Settings]] = GradientSurgeryOptions

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._start: nn.Module | None = None
        self._steps = torch.zeros(2, dtype=torch.long)  # those in conflict, and all

    @property
    def own(self) -> GradientSurgeryOptions:
        """The options, with their type."""
        assert isinstance(self.options, GradientSurgeryOptions)
        return self.options

    @property
    def _acts(self) -> bool:
        return self.own.surgery or self.own.alignment_weight > 0

    def alignment_rows(self, model_name: str) -> dict[str, Sequence[Conversation]]:
        """Return the refusals, if anything is done with them."""
        return {ALIGNMENT: self.own.refusals(model_name)} if self._acts else {}

    def prompts_used(self, model_name: str) -> list[Prompt]:
        """Return the requests that are refused there."""
        return asked_in(self.alignment_rows(model_name).get(ALIGNMENT, ()))

    def before_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Keep the start model, unless switching off the adapters gives it back."""
        self._steps.zero_()
        self._start = None
        if self._acts and not _adapters_do_nothing(model):
            self._start = copy.deepcopy(model).eval().requires_grad_(False)

    def adjust_gradients(self, step: OptimizerStep) -> None:
        """Take the conflict out, and add the alignment gradient."""
        if not self._acts:
            return
        weights = [weight for weight in step.model.parameters() if weight.grad is not None]
        batch = step.alignment_batch(ALIGNMENT, step.number)
        loss = self._divergence(step, batch)
        alignment = step.gradients(loss, weights)
        user = [weight.grad for weight in weights if weight.grad is not None]
        share = without_conflict(user, alignment) if self.own.surgery else 0.0
        self._steps += torch.tensor([int(share != 0.0), 1])
        for gradient, other in zip(user, alignment, strict=True):
            gradient.add_(other, alpha=self.own.alignment_weight)
        step.log("alignment_divergence", float(loss.detach()))
        step.log("gradient_conflict", float(share != 0.0))

    def _divergence(self, step: OptimizerStep, batch: Batch) -> Float[Tensor, ""]:
        """Return KL(start || model) in nats per token of the refusals."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        learned = batch["labels"][:, 1:] != _IGNORED
        with torch.no_grad(), step.autocast(), self._as_start(step.model):
            model = self._start or step.model
            was_training = model.training
            start = _log_probabilities(model.eval(), inputs, learned)
            model.train(was_training)
        with step.autocast():
            now = _log_probabilities(step.model, inputs, learned)
        return (start.exp() * (start - now)).sum(dim=-1).mean()

    def _as_start(self, model: nn.Module) -> AbstractContextManager[Any]:
        if self._start is not None:
            return nullcontext()
        assert isinstance(model, PeftModel)
        return model.disable_adapter()

    def after_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Let go of the start model."""
        self._start = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return in how many steps there was a conflict."""
        return {"steps": self._steps} if self._acts else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the count back."""
        self._steps = state["steps"].clone()

    def evidence(self) -> dict[str, Any]:
        """Return in how many steps there was a conflict."""
        conflicts, steps = self._steps.tolist()
        return {"steps": steps, "steps_in_conflict": conflicts} if steps else {}


@torch.no_grad()
def without_conflict(user: Sequence[Tensor], alignment: Sequence[Tensor]) -> float:
    """Take out of a gradient, in place, its part against another one, if there is any.

    Args:
        user: The gradient, in pieces.
        alignment: The other one, in the same pieces.

    Returns:
        What multiple of the other gradient was taken out; 0 if they do not conflict.

    Example:
        >>> user, alignment = [torch.tensor([1.0, -2.0])], [torch.tensor([0.0, 4.0])]
        >>> without_conflict(user, alignment), user
        (-0.5, [tensor([1., 0.])])
    """
    product = sum(float((one.double() * other.double()).sum()) for one, other in zip(user, alignment, strict=True))
    if product >= 0:
        return 0.0
    multiple = product / sum(float(other.double().square().sum()) for other in alignment)
    for one, other in zip(user, alignment, strict=True):
        one.sub_(other, alpha=multiple)
    return multiple


def _log_probabilities(
    model: Any, inputs: Mapping[str, Int[Tensor, "batch seq"]], learned: Tensor
) -> Float[Tensor, "token vocabulary"]:
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    found: Tensor = logits[learned].float().log_softmax(dim=-1)
    return found


def _adapters_do_nothing(model: nn.Module) -> bool:
    """Tell whether a model without its adapters is the start model: they multiply by zero as they are initialised."""
    if not isinstance(model, PeftModel):
        return False
    return all(not bool(weight.any()) for name, weight in model.named_parameters() if ".lora_B." in name)
