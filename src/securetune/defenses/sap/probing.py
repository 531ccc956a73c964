"""SAP (arXiv 2505.16737): the gradients of training are taken with a small safety-aware probe on the hidden states.

Let L(W, v) be the user's loss with the probe v, one vector for each of a few layers, added to the layer's output at
every token. Each step:

1. On a batch of harmful requests the contrastive loss C = -ln sigmoid((ln p(refusal) - ln p(compliance)) / T); along
   its gradient a model becomes more harmful. W' = W + perturbation·‖W‖·∇C/‖∇C‖, over all that trains.
2. The gradient of L(W, v) - L(W', v) with respect to v. Against it v makes the harmful direction cost the task more.
3. W takes its step on L(W, v), and the next step's v is one step of AdamW from zero, at a rate of its own.

Fidelity: this is what the authors' published code does (SAP_code in their repository, in the order given here: a step's
probe comes from the batch before; the perturbed weights serve the probe alone); of the paper itself only the abstract
and descriptions of the algorithm were at hand. In the code the probe is a bias of `down_proj` in layers 3 and 9 of 32,
and LoRA on Q and V trains; ours is added to the layer's output, which is the same in a layer that ends with the
residual sum, at the same relative depths, and anything may train. Its rate of 0.05 and T = 1 are the code's.
Ours too: with accumulation the probe's gradient is that of all batches of a step, and the compliance is an opening that
agrees, where the code has a harmful answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from securetune.config import Settings
from securetune.data.alignment_samples import answered
from securetune.data.conversations import Conversation
from securetune.data.prompts import Prompt
from securetune.defenses.alignment_options import AlignmentOptions, asked_in
from securetune.defenses.base import Defense, DefenseContext
from securetune.defenses.optimizer_step import Batch, OptimizerStep
from securetune.defenses.registry import register_defense
from securetune.errors import ConfigError
from securetune.models.layer_weights import layer_path

_REFUSAL, _COMPLIANCE = "refusal", "compliance"
_DEPTHS = (3 / 32, 9 / 32)
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_IGNORED = -100


class ProbingOptions(AlignmentOptions):
    """Options of `sap`; a file of `samples` has `prompt`, `chosen` (the refusal) and `rejected`, as for DPO.

    Attributes:
        probe_rate: Rate of the probe's step (≥ 0); 0 is plain fine-tuning. 0.05, as in the authors' code.
        perturbation: Length of the harmful step (> 0), relative to the norm of all that trains.
        layers: Layers whose output the probe is added to, counted from 0; None: 3/32 and 9/32 of the way up.
        temperature: T of the contrastive loss (> 0).
    """

    probe_rate: Annotated[float, Field(ge=0.0)] = 0.05
    perturbation: Annotated[float, Field(gt=0.0)] = 2e-5
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    temperature: Annotated[float, Field(gt=0.0)] = 1.0


@register_defense("sap")
class SafetyAwareProbing(Defense):
    """SAP: gradients are taken with a probe on the hidden states that gives the harmful direction no reward.

    A step costs about two more passes over its batches and two over harmful requests. Sharded weights (FSDP2, DeepSpeed
    ZeRO) are refused.
    """

    source = "arXiv 2505.16737 and its authors' code"
    options_type: ClassVar[type[Settings]] = ProbingOptions

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._probe = Probe(self.own.probe_rate)
        self._towards_harm: list[Tensor] = []

    @property
    def own(self) -> ProbingOptions:
        """The options, with their type."""
        assert isinstance(self.options, ProbingOptions)
        return self.options

    def alignment_rows(self, model_name: str) -> dict[str, Sequence[Conversation]]:
        """Return the requests with their refusals, and with the answers that comply."""
        if self.own.probe_rate == 0:
            return {}
        found = self.own.contrasts(model_name)
        return {
            _REFUSAL: [answered(each.request, each.refusal) for each in found],
            _COMPLIANCE: [answered(each.request, each.compliance) for each in found],
        }

    def prompts_used(self, model_name: str) -> list[Prompt]:
        """Return the requests."""
        return asked_in(self.alignment_rows(model_name).get(_REFUSAL, ()))

    def before_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Put the probe in, which is zero until the first step is done.

        Raises:
            ConfigError: If the model has no such layer.
        """
        self._probe.remove()
        if self.own.probe_rate == 0:
            return
        paths = {module.layer: str(layer_path(module.weight_name)) for module in context.modules}
        chosen = self.own.layers or tuple(sorted({round(depth * len(paths)) for depth in _DEPTHS}))
        if unknown := [layer for layer in chosen if layer not in paths]:
            raise ConfigError(f"method_options.layers must be in [0, {len(paths) - 1}]; got {unknown[0]}")
        self._probe.add_to([model.get_submodule(paths[layer]) for layer in dict.fromkeys(chosen)], model)

    def before_step(self, step: OptimizerStep) -> None:
        """Find the harmful direction, and what the probe does to the user's loss there."""
        if self.own.probe_rate == 0:
            return
        weights = [weight for weight in step.model.parameters() if weight.requires_grad]
        loss = self._contrast(step)
        step.log("contrastive_loss", float(loss.detach()))
        with _moved(weights, step.gradients(loss, weights), self.own.perturbation):
            found = [step.gradients(user(), self._probe.values) for user in step.user_losses()]
        self._towards_harm = [torch.stack(values).sum(dim=0) for values in zip(*found, strict=True)]
        for value in self._probe.values:
            value.grad = None

    def _contrast(self, step: OptimizerStep) -> Float[Tensor, ""]:
        refused, complied = (
            _log_likelihood(step, step.alignment_batch(name, step.number)) for name in (_REFUSAL, _COMPLIANCE)
        )
        return -nn.functional.logsigmoid((refused - complied) / self.own.temperature).mean()

    def adjust_gradients(self, step: OptimizerStep) -> None:
        """Leave the gradients, which were taken with the probe, and move the probe for the next step."""
        if self.own.probe_rate == 0:
            return
        here = step.averaged([torch.zeros_like(v) if v.grad is None else v.grad for v in self._probe.values])
        self._probe.move([one - other for one, other in zip(here, self._towards_harm, strict=True)])

    def after_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Take the probe out."""
        self._probe.remove()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the probe and its optimizer's moments."""
        return self._probe.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self._probe.load_state_dict(state)


class Probe:
    """A vector for each of some layers, added to the layer's output while the model trains; AdamW moves it from zero.

    Args:
        rate: Of its steps.

    Attributes:
        values: The vectors.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._handles: list[RemovableHandle] = []
        self.values: list[Tensor] = []
        self._moments: list[tuple[Tensor, Tensor]] = []
        self._steps = 0

    def add_to(self, layers: Sequence[nn.Module], model: nn.Module) -> None:
        """Begin with zeros."""
        size = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
        for layer in layers:
            device = next(layer.parameters()).device
            value = torch.zeros(size, device=device, requires_grad=True)
            self.values.append(value)
            self._moments.append((torch.zeros(size, device=device), torch.zeros(size, device=device)))
            self._handles.append(layer.register_forward_hook(_adding(value)))

    def remove(self) -> None:
        """Leave the layers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.values, self._moments, self._steps = [], [], [], 0

    @torch.no_grad()
    def move(self, gradients: Sequence[Tensor]) -> None:
        """Set the probe to one step of AdamW from zero, whose moments go on from step to step."""
        self._steps += 1
        corrections = [1 - beta**self._steps for beta in _BETAS]
        for value, (first, second), gradient in zip(self.values, self._moments, gradients, strict=True):
            first.lerp_(gradient, 1 - _BETAS[0])
            second.lerp_(gradient.square(), 1 - _BETAS[1])
            value.copy_(-self._rate * (first / corrections[0]) / ((second / corrections[1]).sqrt() + _EPSILON))
            value.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return values, moments and the number of steps."""
        found: dict[str, Tensor] = {}
        for place, (value, (first, second)) in enumerate(zip(self.values, self._moments, strict=True)):
            found |= {f"value.{place}": value, f"first.{place}": first, f"second.{place}": second}
        return {**found, "steps": torch.tensor(self._steps)} if found else {}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy them back into a probe that has been added to the same layers."""
        for place, (value, (first, second)) in enumerate(zip(self.values, self._moments, strict=True)):
            for name, target in (("value", value), ("first", first), ("second", second)):
                target.copy_(state[f"{name}.{place}"])
        self._steps = int(state["steps"])


def _adding(value: Tensor) -> Any:
    def add(layer: nn.Module, _: Any, output: Any) -> Any:
        if not layer.training:
            return output
        if isinstance(output, tuple):
            return (output[0] + value.to(output[0].dtype), *output[1:])
        return output + value.to(output.dtype)

    return add


@contextmanager
def _moved(weights: Sequence[Tensor], direction: Sequence[Tensor], length: float) -> Iterator[None]:
    """Move weights along a direction by a share of their norm, and put the very same ones back afterwards."""
    kept = [weight.detach().clone() for weight in weights]
    norm = _norm(direction)
    with torch.no_grad():
        for weight, along in zip(weights, direction, strict=True) if norm > 0 else ():
            weight.add_(along.to(weight.dtype), alpha=length * _norm(kept) / norm)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


def _norm(values: Sequence[Tensor]) -> float:
    return sum(float(value.double().square().sum()) for value in values) ** 0.5


def _log_likelihood(step: OptimizerStep, batch: Batch) -> Float[Tensor, " row"]:
    """Return ln p of each row's answer."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = batch["labels"][:, 1:]
    with step.autocast():
        logits = step.model(**inputs, use_cache=False).logits[:, :-1].float()
    of_each = logits.log_softmax(dim=-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    found: Tensor = (of_each * (labels != _IGNORED)).sum(dim=1)
    return found
