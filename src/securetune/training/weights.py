"""Weights by name in one safetensors file: checkpoints within a phase, and what one phase hands to the next.

Only what the phase trains is written: under LoRA the adapters, in the warm-up Mods_Rob. Values are stored as they are
in memory, so that a training that goes on from a file ends as if it had never stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from securetune.errors import RunError
from securetune.models.parameter_names import parameters_by_name
from securetune.models.whole_weights import whole, whole_shape, write_whole


def save_weights(model: nn.Module, names: Iterable[str], path: Path, here: bool = True) -> None:
    """Write parameters so that `path` is either absent or complete.

    Args:
        model: The model; where its weights are divided, every process has to call this.
        names: Of its parameters.
        path: The file.
        here: Whether this process writes it; the others only give their parts.
    """
    wanted = set(names)
    tensors = {}
    for name, parameter in parameters_by_name(model):
        values = whole(parameter) if name in wanted else None
        if here and values is not None:
            tensors[name] = values.cpu().contiguous()  # no more than one whole parameter at a time on the device
    if not here:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    save_file(tensors, beside)
    os.replace(beside, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the file's values into the parameters of the same names.

    Raises:
        RunError: If the file has a parameter that the model has not, or in another shape or a higher precision.
    """
    parameters = dict(parameters_by_name(model))
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            values = file.get_tensor(name)
            target = parameters.get(name)
            if target is None or whole_shape(target) != values.shape or not _holds(target.dtype, values.dtype):
                raise RunError(f"{path}: {name} does not fit the model. Delete the output folder and start again.")
            write_whole(target, values)


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Tell whether no value is rounded: an engine that computes in bfloat16 narrows a float32 model only later."""
    return torch.promote_types(wide, narrow) == wide
