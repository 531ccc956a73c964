"""Names of parameters as they are in the model alone, whatever has been put around its modules."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX


def parameters_by_name(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters with the names they have in the model alone.

    FSDP's own activation checkpointing puts a module around each layer, which shows in `named_parameters()`.
    """
    for name, parameter in model.named_parameters():
        yield own_name(name), parameter


def own_name(name: str) -> str:
    """Return the name that a parameter or module has in the model alone.

    Example:
        >>> own_name("model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight")
        'model.layers.0.mlp.up_proj.weight'
    """
    return name.replace(_CHECKPOINT_PREFIX, "")


def layer_path(name: str) -> str:
    """Return the path of the layer that a weight or bias belongs to, with its adapters if it has any.

    Example:
        >>> layer_path("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight")
        'base_model.model.model.layers.0.mlp.up_proj'
    """
    return own_name(name).rpartition(".")[0].removesuffix(".base_layer")
