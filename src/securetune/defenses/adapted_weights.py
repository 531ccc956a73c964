"""Weights with a low-rank adapter on each, and adapters that begin elsewhere than at nothing.

With start values B₀ and A₀ the frozen part of a weight is W₀ - s·B₀·A₀, so that the model is what it was. The weight
itself is not touched. The adapter has twice the rank instead, [B, -B₀] and [A; A₀], whose second half is frozen: what
PEFT makes of PiSSA's and CorDA's adapters when it converts them to LoRA, here from the first step on. So every
checkpoint fits the start model as it is, and brings along what its adapter began with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn

from securetune.defenses.base import DefenseContext
from securetune.errors import ConfigError, ProblemList
from securetune.models import ProjectionModule
from securetune.models.parameter_names import layer_path


class Start(NamedTuple):
    """Values with which an adapter begins; scale·up·down is taken out of the frozen part.

    Attributes:
        up: B₀.
        down: A₀.
    """

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank in"]


class AdaptedWeight(NamedTuple):
    """A weight of a projection, or of several that are fused, with the adapter on it.

    Attributes:
        path: Of the layer in the plain model.
        layer_path: Of the adapter's layer in the model as it is.
        adapter: Its name.
        rank: How much of its rank trains; what is above is frozen.
        scale: What B·A is multiplied by.
        module: One of the projections.
    """

    path: str
    layer_path: str
    adapter: str
    rank: int
    scale: float
    module: ProjectionModule

    def factors_in(self, model: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A and B."""
        layer: Any = model.get_submodule(self.layer_path)
        return layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight

    def size_in(self, model: nn.Module) -> tuple[int, int]:
        """Return how many outputs and inputs the weight has."""
        down, up = self.factors_in(model)
        return up.shape[0], down.shape[1]

    def values_in(self, model: nn.Module) -> Float[Tensor, "out in"]:
        """Return the weight that is adapted, in float64, as (out, in)."""
        weight = model.get_parameter(self.module.weight_name).detach().double()
        return weight.mT if self.module.part.transposed else weight


def adapted_weights(model: nn.Module, context: DefenseContext, method: str) -> list[AdaptedWeight]:
    """Return every adapter of a model with the weight that it is on.

    Args:
        model: With adapters that have learned nothing yet.
        context: For the projections and what trains.
        method: Whose name stands in the messages.

    Raises:
        ConfigError: If there are no adapters, or some that are not plain LoRA on projections and untrained.
    """
    if not isinstance(model, PeftModel):
        raise ConfigError(f"{method} works on adapters, and the model has none. Give a peft_config, or tune: lora.")
    modules = {layer_path(module.weight_name): module for module in context.modules}
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    problems = ProblemList()
    problems.found += _adapter_problems(layers, modules, method)
    if getattr(model, "is_quantized", False):
        problems.found.append(quantized(method))
    if any(type(parameter.data).__name__ == "DTensor" for parameter in model.parameters()):
        problems.found.append(f"{method} needs whole weights in each process; they are sharded (FSDP2). Use DDP.")
    if any(name.endswith(".bias") and layer_path(name) in modules for name in context.parameters.all):
        problems.found.append(f"{method} cannot hold outputs while biases train. Set the adapters' bias to none.")
    problems.raise_if_any(ConfigError)
    return [_adapted(layers[path], path, modules[path]) for path in layers]


def quantized(method: str) -> str:
    """Return the sentence that refuses a quantized model."""
    return f"{method} decomposes weights, and those of a quantized model are packed. Use one in full precision."


def _adapter_problems(layers: Mapping[str, Any], modules: Mapping[str, ProjectionModule], method: str) -> Iterator[str]:
    """Say why adapters cannot be confined, each reason once."""
    found = layers.items()
    if any(module.of_experts and path in layers for path, module in modules.items()):
        yield f"{method} cannot work on stacked experts, whose inputs differ from expert to expert"
    elif any(not isinstance(layer, Linear) or path not in modules for path, layer in found):
        other = next(path for path, layer in found if not isinstance(layer, Linear) or path not in modules)
        yield f"{method} works on adapters of projections alone, and {other} is none. Leave it out of target_modules."
    if any(any(layer.use_dora.values()) for layer in layers.values()):
        yield f"{method} works with LoRA, not with DoRA, whose magnitudes change every output"
    elif any(layer.lora_variant for layer in layers.values()):
        yield f"{method} works with plain LoRA, not with a variant of it"
    if any(len(layer.lora_A) != 1 for layer in layers.values()):
        yield f"{method} works on one adapter; this model has several on a weight. Merge or delete the others."
    elif any(bool(each.weight.any()) for layer in layers.values() for each in layer.lora_B.values()):
        yield (
            f"{method} begins with adapters that have learned nothing, and these have values already. Merge them into "
            "the start model first, or set init_lora_weights to True."
        )
    if any(any(layer.lora_bias.values()) for layer in layers.values()):
        yield f"{method} cannot hold outputs while adapters have a bias. Set lora_bias to False."


def _adapted(layer: Any, path: str, module: ProjectionModule) -> AdaptedWeight:
    (adapter,) = layer.lora_A
    return AdaptedWeight(module.path, path, adapter, layer.r[adapter], float(layer.scaling[adapter]), module)


@torch.no_grad()
def begin_with(model: PeftModel, weights: Sequence[AdaptedWeight], starts: Mapping[str, Start]) -> None:
    """Let every adapter begin with values of its own, and add the frozen half that takes them out.

    Args:
        model: Changed in place: the adapters, and their configuration.
        weights: All adapters.
        starts: By path, for each of them.
    """
    for each in weights:
        layer: Any = model.get_submodule(each.layer_path)
        start = starts[each.path]
        _replace(layer.lora_A[each.adapter], torch.cat([start.down, start.down]))
        _replace(layer.lora_B[each.adapter], torch.cat([start.up, -start.up], dim=1))
        layer.r[each.adapter] = 2 * each.rank
        layer.lora_alpha[each.adapter] *= _alpha_factor(layer.use_rslora[each.adapter])
    for name in {each.adapter for each in weights}:
        config: Any = model.peft_config[name]
        factor = _alpha_factor(config.use_rslora)
        config.r, config.lora_alpha = 2 * config.r, factor * config.lora_alpha
        config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
        config.alpha_pattern = {key: factor * alpha for key, alpha in config.alpha_pattern.items()}


def _replace(linear: nn.Linear, values: Tensor) -> None:
    old = linear.weight
    linear.weight = nn.Parameter(values.to(old).contiguous(), requires_grad=old.requires_grad)
    linear.out_features, linear.in_features = values.shape


def _alpha_factor(is_rank_stabilized: bool) -> float:
    """Return by what alpha grows so that the scale stays when the rank doubles."""
    return math.sqrt(2) if is_rank_stabilized else 2.0
