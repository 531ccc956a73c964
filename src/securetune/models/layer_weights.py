"""The weights in a model's layers that may be projections, by their paths in the plain model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from securetune.models.whole_weights import whole_shape

_PEFT_PREFIX = "base_model.model."
_LAYER = re.compile(r"\.(\d+)\.")
_LONGEST_LIST = 24


class LayerWeight(NamedTuple):
    """A matrix of a linear map, or the stacked matrices of experts.

    Attributes:
        path: Path in the plain model, without `.weight`, the same when PEFT wraps the model.
        layer: Index of the layer, from 0.
        weight_name: Name among `named_parameters()` of the model as it is.
        holder: The submodule that has the parameter.
        weight: The parameter.
    """

    path: str
    layer: int
    weight_name: str
    holder: nn.Module
    weight: Tensor

    @property
    def path_in_layer(self) -> str:
        """What stands behind the layer's number."""
        return _LAYER.split(self.path, maxsplit=1)[-1]

    @property
    def transposed(self) -> bool:
        """Whether it is stored (in, out); experts say so by an attribute, and what does not is as `nn.Linear`."""
        if isinstance(self.holder, Conv1D):
            return True
        return bool(getattr(self.holder, "is_transposed", False) and self.weight.ndim == 3)


def layer_weights(model: nn.Module) -> Iterator[LayerWeight]:
    """Yield the matrices of linear maps and the three-dimensional parameters in the layers of a model."""
    for path, holder in model.named_modules():
        for name, weight_name, weight in _weights_of(path, holder):
            if layer := _LAYER.search(weight_name):
                yield LayerWeight(name, int(layer[1]), weight_name, holder, weight)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return a model's layers in their order: the submodules with a number that hold its matrices."""
    paths = {
        found.layer: found.weight_name[: match.end() - 1]
        for found in layer_weights(model)
        if (match := _LAYER.search(found.weight_name))
    }
    return [model.get_submodule(paths[layer]) for layer in sorted(paths)]


def plain_path(path: str) -> str:
    """Return a submodule's path without what PEFT puts before and into it."""
    return path.removeprefix(_PEFT_PREFIX).replace(".base_layer", "")


def _weights_of(path: str, holder: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    if isinstance(holder, nn.Linear | Conv1D):
        yield plain_path(path), f"{path}.weight", _unpacked(holder)
    else:
        for name, parameter in holder.named_parameters(recurse=False):
            if len(whole_shape(parameter)) == 3:
                yield f"{plain_path(path)}.{name}", f"{path}.{name}", _in_one_piece(parameter)


def _unpacked(holder: nn.Linear | Conv1D) -> Tensor:
    """Return the weight, or one of its shape without values where it is stored packed (4 bits) or divided."""
    if not isinstance(holder, nn.Linear) or holder.weight.shape == (holder.out_features, holder.in_features):
        return _in_one_piece(holder.weight)
    return torch.empty(holder.out_features, holder.in_features, device="meta")


def _in_one_piece(weight: Tensor) -> Tensor:
    """Return the weight, or one of its shape without values where each process holds a part that shows no shape."""
    shape = whole_shape(weight)
    return weight if weight.shape == shape else torch.empty(shape, device="meta")


def is_matrix(parameter: Tensor) -> bool:
    """Tell matrices, and stacks of them, from vectors."""
    return len(whole_shape(parameter)) >= 2


def uncovered(model: nn.Module, mapped_names: set[str]) -> list[str]:
    """Return the names of the layers' matrices that are neither mapped nor known to be something else."""
    return [
        name
        for name, parameter in model.named_parameters()
        if is_matrix(parameter) and _LAYER.search(name) and name not in mapped_names and not _is_other(model, name)
    ]


def _is_other(model: nn.Module, parameter_name: str) -> bool:
    """Tell adapters, biases, embeddings, norms and routers, which choose experts, from projections."""
    if ".lora_" in parameter_name or parameter_name.endswith("bias"):
        return True
    path = parameter_name.rpartition(".")[0]
    holder = model.get_submodule(path)
    if isinstance(holder, nn.Embedding) or type(holder).__name__.endswith("Norm"):
        return True
    block = model.get_submodule(path.rpartition(".")[0])
    return path.rpartition(".")[2] in ("gate", "router") and hasattr(block, "experts")


def shapes_in_layer(model: nn.Module, layer: int) -> str:
    """Return the matrices of a layer, with their shapes as they are stored, for a message."""
    found = {
        _inside(name): "×".join(map(str, whole_shape(parameter)))
        for name, parameter in model.named_parameters()
        if is_matrix(parameter) and f".{layer}." in name
    }
    return _listed([f"{name} {shape}" for name, shape in found.items()]) or "none"


def paths_in_layers(parameter_names: Iterable[str]) -> str:
    """Return the distinct paths inside a layer, for a message."""
    return _listed(list(dict.fromkeys(map(_inside, parameter_names))))


def layer_of(parameter_name: str) -> int | None:
    """Return the index of the layer that a parameter is in, or None."""
    found = _LAYER.search(parameter_name)
    return int(found[1]) if found else None


def layer_path(parameter_name: str) -> str | None:
    """Return the path of the layer that a parameter is in, or None.

    Example:
        >>> layer_path("base_model.model.model.layers.3.self_attn.q_proj.base_layer.weight")
        'base_model.model.model.layers.3'
    """
    found = _LAYER.search(parameter_name)
    return parameter_name[: found.end(1)] if found else None


def _inside(parameter_name: str) -> str:
    return _LAYER.split(parameter_name, maxsplit=1)[-1].removesuffix(".weight")


def _listed(entries: Sequence[str]) -> str:
    more = len(entries) - _LONGEST_LIST
    return ", ".join(entries[:_LONGEST_LIST]) + (f" and {more} more" if more > 0 else "")


def plain_class_name(model: nn.Module) -> str:
    """Return the class of the model itself, without PEFT's wrapper."""
    return type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__
