"""Where the seven projections live: Q, K, V, O, Gate, Up and Down, as submodules of their own.

Known names: those of Llama and everything built like it (Qwen2/3, Mistral, Gemma 2/3, OLMo2, Granite, SmolLM3). They
are looked for by structure, not by model class, so that a new model of the family needs no entry here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from peft import PeftModel
from torch import Tensor, nn

from securetune.errors import ModelError

MODULE_TYPES = ("Q", "K", "V", "O", "Gate", "Up", "Down")
"""The projection types, in the order in which they are drawn and listed."""

_TYPE_OF_NAME = dict(
    zip(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), MODULE_TYPES, strict=True)
)
_PEFT_PREFIX = "base_model.model."
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class ProjectionModule:
    """One projection of one layer.

    Attributes:
        name: Path in the plain model, such as `model.layers.2.mlp.up_proj`; the same when PEFT wraps the model.
        type: One of `MODULE_TYPES`.
        layer: Index of the layer, from 0.
        weight_name: The weight's name among `named_parameters()` of the model as it is now (with PEFT,
            `base_model.model.….up_proj.base_layer.weight`).
        parameter_count: Number of weights (a bias is not counted: it is not perturbed).
    """

    name: str
    type: str
    layer: int
    weight_name: str
    parameter_count: int


def map_modules(model: nn.Module) -> list[ProjectionModule]:
    """List every Q, K, V, O, Gate, Up and Down projection, in the model's own order.

    Args:
        model: A causal language model, plain or wrapped by PEFT.

    Raises:
        ModelError: If a layer lacks one of the seven types or has one twice (fused projections, experts).
    """
    found = list(_projections(model))
    problem = _incomplete(model, found)
    if problem:
        raise ModelError(problem)
    return found


def _projections(model: nn.Module) -> Iterator[ProjectionModule]:
    for path, module in model.named_modules():
        kind = _TYPE_OF_NAME.get(path.rpartition(".")[2])
        layer = _LAYER.search(path)
        weight, weight_name = _linear_weight(module)
        if kind is None or layer is None or weight is None:
            continue
        plain = path.removeprefix(_PEFT_PREFIX)
        yield ProjectionModule(plain, kind, int(layer[1]), f"{path}.{weight_name}", weight.numel())


def _linear_weight(module: nn.Module) -> tuple[Tensor | None, str]:
    """Return the weight of a linear map, also under a PEFT adapter, which keeps the map as `base_layer`."""
    base = getattr(module, "base_layer", None)
    if isinstance(base, nn.Linear):
        return base.weight, "base_layer.weight"
    return (module.weight, "weight") if isinstance(module, nn.Linear) else (None, "")


def _incomplete(model: nn.Module, found: list[ProjectionModule]) -> str | None:
    """Say what the seven-type map lacks, or None if it is complete."""
    config = getattr(model, "config", None)
    layer_count = getattr(config, "num_hidden_layers", None) or 1 + max((m.layer for m in found), default=0)
    by_layer: dict[int, list[str]] = defaultdict(list)
    for module in found:
        by_layer[module.layer].append(module.type)
    for layer in range(layer_count):
        missing = [kind for kind in MODULE_TYPES if kind not in by_layer[layer]]
        twice = [kind for kind in MODULE_TYPES if by_layer[layer].count(kind) > 1]
        if missing or twice:
            lack = f"layer {layer} lacks {', '.join(missing)}" if missing else f"layer {layer} has {twice[0]} twice"
            return (
                f"{_plain_class_name(model)}: every layer must have Q, K, V, O, Gate, Up and Down as linear maps of "
                f"their own; {lack}. Weights found there: {', '.join(_weights_of_layer(model, layer)) or 'none'}."
            )
    return None


def _plain_class_name(model: nn.Module) -> str:
    return type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__


def _weights_of_layer(model: nn.Module, layer: int) -> list[str]:
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    inside = [name.split(f".{layer}.", 1)[1] for name in matrices if f".{layer}." in name]
    return list(dict.fromkeys(name.removesuffix(".weight") for name in inside))[:12]
