"""A model type that nobody registered: which weight of a layer is which projection, if names and shapes agree.

A weight is taken for a projection only if it has a name that the field uses for just that one, lies in the right block
(attention, or not), and has the shape that the projection must have. Any weight that is left over is a reason to
refuse, and so is a fused one: no shape shows in which order Q, K and V lie in it (GPT-2's `c_attn` has them one below
the other; GPT-BigCode's, of the same name and shape, head by head). Experts are stacked by transformers with attributes
that say how, so there Gate and Up are known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

from torch import nn

from securetune.errors import ModelError
from securetune.models.architectures import Architecture
from securetune.models.layer_weights import (
    LayerWeight,
    is_matrix,
    layer_of,
    layer_weights,
    paths_in_layers,
    plain_class_name,
    plain_path,
    shapes_in_layer,
    uncovered,
)

_IN_ATTENTION = {
    "Q": ("q_proj", "wq", "query"),
    "K": ("k_proj", "wk", "key"),
    "V": ("v_proj", "wv", "value"),
    "O": ("o_proj", "out_proj", "wo", "dense"),
}
_OUTSIDE = {
    "Gate": ("gate_proj",),
    "Up": ("up_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h"),
    "Down": ("down_proj", "fc2", "fc_out", "c_proj", "dense_4h_to_h"),
}
_NUMBERED = {True: {"w1": "Gate", "w3": "Up", "w2": "Down"}, False: {"w1": "Up", "w2": "Down"}}
"""With a w3, w1 is the gate (Llama's own code, Mixtral, LFM2); without one there is no gate."""

_EXPERTS = {"gate_up_proj": ("Gate", "Up"), "down_proj": ("Down",)}
_LAYOUT = ("is_concatenated", "is_transposed")
"""What transformers' experts say about the storage of their matrices."""

Shape = tuple[int, int]
"""Outputs and inputs."""


def infer_architecture(model: nn.Module) -> Architecture:
    """Find which weights are which projections.

    Args:
        model: A causal language model of a type that is not registered, plain or wrapped by PEFT.

    Raises:
        ModelError: With what is in doubt, all weights of that layer with their shapes, and what to do.
    """
    lists = _lists_of_blocks(model)
    if len(lists) != 1:
        _refuse(model, None, f"it must have one list of layers that hold matrices; got {', '.join(lists) or 'none'}")
    weights = list(layer_weights(model))
    third = {weight.path.rpartition(".")[0] for weight in weights if weight.path.endswith(".w3")}
    types = {weight.weight_name: _types_of(model, weight, third) for weight in weights}
    known = [weight for weight in weights if types[weight.weight_name]]
    if left := uncovered(model, {weight.weight_name for weight in known}):
        names = paths_in_layers(left)
        _refuse(model, layer_of(left[0]), f"no standard name, here, of one projection alone: {names}")
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    for layer in range(config.num_hidden_layers):
        shapes = _shapes([weight for weight in known if weight.layer == layer], types)
        if problem := _shape_problem(shapes, config):
            _refuse(model, layer, f"layer {layer}: {problem}")
    return Architecture(
        config.model_type, {weight.path_in_layer: types[weight.weight_name] for weight in known}, by_structure=True
    )


def _lists_of_blocks(model: nn.Module) -> list[str]:
    """Return the paths of the outermost lists of modules that hold matrices."""
    found: list[str] = []
    for path, module in model.named_modules():
        is_inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not is_inside and any(is_matrix(p) for p in module.parameters()):
            found.append(path)
    return [plain_path(path) for path in found]


def _types_of(model: nn.Module, weight: LayerWeight, blocks_with_third: Collection[str]) -> tuple[str, ...]:
    """Return the projections that a weight is by its name and place, none if it is not clear."""
    block, _, last = weight.path.rpartition(".")
    if weight.weight.ndim == 3:
        states_layout = all(hasattr(weight.holder, name) for name in _LAYOUT)
        return _EXPERTS.get(last, ()) if states_layout else ()
    if _is_in_attention(model, weight):
        return tuple(kind for kind, names in _IN_ATTENTION.items() if last in names)
    numbered = _NUMBERED[block in blocks_with_third].get(last)
    return (numbered,) if numbered else tuple(kind for kind, names in _OUTSIDE.items() if last in names)


def _is_in_attention(model: nn.Module, weight: LayerWeight) -> bool:
    """Tell by the names and classes of the modules between the layer and the weight."""
    around, layer, inside = weight.weight_name.partition(f".{weight.layer}.")
    path = f"{around}{layer}".rstrip(".")
    for part in inside.split(".")[:-2]:
        path = f"{path}.{part}"
        if "attn" in part or "attention" in part or "Attention" in type(model.get_submodule(path)).__name__:
            return True
    return False


def _shapes(weights: Sequence[LayerWeight], types: Mapping[str, tuple[str, ...]]) -> dict[str, list[Shape]]:
    """Return outputs and inputs by projection; of experts, those of one."""
    found: dict[str, list[Shape]] = defaultdict(list)
    for weight in weights:
        outputs, inputs = _oriented(weight)
        kinds = types[weight.weight_name]
        for kind in kinds:
            found[kind].append((outputs // len(kinds), inputs))
    return found


def _oriented(weight: LayerWeight) -> Shape:
    if isinstance(weight.holder, nn.Linear):  # whose weight has another shape where it is quantized
        return weight.holder.out_features, weight.holder.in_features
    first, second = weight.weight.shape[-2:]
    return (second, first) if weight.transposed else (first, second)


def _shape_problem(shapes: Mapping[str, list[Shape]], config: Any) -> str | None:
    """Say what a layer lacks or has twice, or which shape is not its projection's; None if all is clear."""
    lacking = [kind for kind in ("Q", "K", "V", "O", "Up", "Down") if kind not in shapes]
    twice = [kind for kind, found in shapes.items() if len(found) > 1]
    if lacking or twice:
        return f"it lacks {', '.join(lacking)}" if lacking else f"it has {twice[0]} twice"
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or hidden // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    inner = shapes["Up"][0][0]
    expected = {
        "Q": (heads * head_size, hidden),
        "K": (shared * head_size, hidden),
        "V": (shared * head_size, hidden),
        "O": (hidden, heads * head_size),
        "Gate": (inner, hidden),
        "Up": (inner, hidden),
        "Down": (hidden, inner),
    }
    for kind, (got,) in shapes.items():
        if got != expected[kind]:
            return f"its {kind} must be {_shown(expected[kind])} (outputs × inputs); got {_shown(got)}"
    return None


def _shown(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _refuse(model: nn.Module, layer: int | None, problem: str) -> NoReturn:
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    found = "" if layer is None else f" Weights of layer {layer}: {shapes_in_layer(model, layer)}."
    raise ModelError(
        f'{plain_class_name(model)}: model type "{config.model_type}" is not registered, and its structure leaves a '
        f"doubt: {problem}.{found} If you know which is which, call securetune.models.register_architecture with "
        "their names."
    )
