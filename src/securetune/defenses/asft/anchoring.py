"""AsFT (arXiv 2506.08473): what an update has outside the directions of alignment is held down.

For each projection let V be aligned - base, the start model minus the one it was aligned from, and C = V·Vᵀ / ‖V‖_F,
Safe LoRA's stand-in for a projector on V's columns (see `safe_lora.projection`: it is none, strictly). The loss gets
strength·‖(I - C)·ΔW‖²_F, summed over the projections, with ΔW the update since the start: under LoRA scale·B·A.

Fidelity: the formula and the weight of 1 are the paper's; its authors' code trains LoRA alone and leaves the scale
alpha/r out of ΔW, which ours has. Whole updates are our generalisation. The term's gradient is added to the others',
once an optimizer step and before clipping; as a part of the loss it has the same gradient. A fused weight is one
matrix. Where V is zero, nothing is known of alignment, and the update is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor, nn

from securetune.config import ModelSettings, Settings
from securetune.defenses.base import Defense, DefenseContext
from securetune.defenses.optimizer_step import OptimizerStep
from securetune.defenses.registry import register_defense
from securetune.defenses.safe_lora.projection import project
from securetune.errors import ConfigError
from securetune.models import ProjectionModule, check_model
from securetune.models.checkpoint import Checkpoint, open_checkpoint
from securetune.models.parameter_names import layer_path


class AnchoringOptions(Settings):
    """Options of `asft`.

    Attributes:
        base: The model that the start model was aligned from, in safetensors: an embedded one, a folder or a hub name.
        strength: Weight of the term (≥ 0); 0 is plain fine-tuning. 1, the paper's.
    """

    base: str
    strength: Annotated[float, Field(ge=0.0)] = 1.0


class _Anchor(NamedTuple):
    """One projection whose update is held.

    Attributes:
        module: Which.
        alignment: V, as (out, in).
        start: The weights before training; None under LoRA.
    """

    module: ProjectionModule
    alignment: Float[Tensor, "out in"]
    start: Float[Tensor, "out in"] | None


@register_defense("asft")
class AnchoredUpdates(Defense):
    """AsFT: the part of each update that lies outside the directions of alignment is held down.

    It keeps aligned minus base of each projection that trains, and in full tuning its start weights. Embeddings, norms
    and head are free. Stacked experts, DoRA and sharded weights (FSDP2, DeepSpeed ZeRO) are refused.
    """

    source = "arXiv 2506.08473"
    options_type: ClassVar[type[Settings]] = AnchoringOptions

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._anchors: list[_Anchor] = []

    @property
    def own(self) -> AnchoringOptions:
        """The options, with their type."""
        assert isinstance(self.options, AnchoringOptions)
        return self.options

    def check(self, model: ModelSettings) -> None:
        """Refuse a base model that cannot be read, or that is not the start model's.

        Raises:
            InputError: If it is such.
        """
        base = ModelSettings(name=self.own.base)
        if problems := check_model(base):
            raise ConfigError([f"method_options.base: {problem}" for problem in problems])
        if check_model(model):
            return  # told elsewhere
        here, there = open_checkpoint(model).tensors, open_checkpoint(base).tensors
        other = [name for name in here.keys() & there.keys() if here[name].shape != there[name].shape]
        if other or not here.keys() & there.keys():
            raise ConfigError(
                f"method_options.base must be the model that {model.name} was aligned from; {self.own.base} has other "
                f"weights{f', such as {min(other)}' if other else ''}"
            )

    def before_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Read the base model's projections, one at a time.

        Raises:
            ConfigError: If the base model lacks one, or the model's weights cannot be held.
        """
        self._anchors = []
        if self.own.strength == 0:
            return
        _require_plain_weights(model, context)
        checkpoint = open_checkpoint(ModelSettings(name=self.own.base))
        trained = set(context.parameters.all)
        for module in {module.path: module for module in context.modules}.values():
            if not _trains(model, module, trained):
                continue
            weights = _matrix(model.get_parameter(module.weight_name), module)
            alignment = weights - _of_base(checkpoint, module, weights)
            if bool(alignment.any()):
                start = None if isinstance(model, PeftModel) else weights
                self._anchors.append(_Anchor(module, alignment, start))

    @torch.no_grad()
    def adjust_gradients(self, step: OptimizerStep) -> None:
        """Add the term's gradient."""
        for module, alignment, start in self._anchors:
            if start is None:
                _hold_adapter(_lora_layer(step.model, module), alignment, self.own.strength)
                continue
            weight = step.model.get_parameter(module.weight_name)
            if weight.grad is None:
                continue
            outside = _outside(_matrix(weight, module) - start, alignment)
            gradient = 2 * self.own.strength * _outside(outside, alignment)
            weight.grad.add_(gradient.mT if module.part.transposed else gradient)


def _outside(update: Float[Tensor, "out inner"], alignment: Float[Tensor, "out in"]) -> Float[Tensor, "out inner"]:
    """Return (I - C)·update."""
    return update - project(update, alignment)


def _hold_adapter(layer: Any, alignment: Float[Tensor, "out in"], strength: float) -> None:
    """Add the gradients of strength·‖(I - C)·scale·B·A‖² to those of A and B."""
    for adapter in layer.active_adapters:
        right, left = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        if right.grad is None or left.grad is None:
            continue
        a, weight = right.float(), 2 * strength * layer.scaling[adapter] ** 2
        outside = _outside(left.float(), alignment)
        right.grad.add_((weight * (outside.mT @ outside) @ a).to(right.dtype))
        left.grad.add_((weight * _outside(outside, alignment) @ (a @ a.mT)).to(left.dtype))


def _matrix(weight: Tensor, module: ProjectionModule) -> Float[Tensor, "out in"]:
    """Return a copy in float32, as (out, in)."""
    found = weight.detach().float()
    return (found.mT if module.part.transposed else found).clone()


def _of_base(checkpoint: Checkpoint, module: ProjectionModule, weights: Tensor) -> Float[Tensor, "out in"]:
    name = f"{module.path}.weight"
    if checkpoint.stored_name(name) is None:
        raise ConfigError(f"method_options.base: {checkpoint.name} has no {name}")
    return _matrix(checkpoint.read(name), module).to(weights.device)


def _lora_layer(model: nn.Module, module: ProjectionModule) -> Any:
    return model.get_submodule(layer_path(module.weight_name))


def _trains(model: nn.Module, module: ProjectionModule, trained: set[str]) -> bool:
    if isinstance(model, PeftModel):
        return isinstance(_lora_layer(model, module), LoraLayer)
    return module.weight_name in trained


def _require_plain_weights(model: nn.Module, context: DefenseContext) -> None:
    problems = []
    if any(module.of_experts for module in context.modules):
        problems.append("asft cannot hold the updates of stacked experts")
    if any("lora_magnitude" in name for name, _ in model.named_parameters()):
        problems.append("asft works with LoRA, not with DoRA, whose magnitudes change every update")
    if getattr(model, "is_quantized", False):
        problems.append("asft compares weights with the base model's, and those of a quantized model are packed")
    if problems:
        raise ConfigError(problems)
