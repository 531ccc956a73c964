"""What FSDP2 does to a model in place, where a training of several phases has to know of it.

FSDP2 turns every parameter into a DTensor, of which each process holds a shard, and a second trainer finds the model
so. Which parameters train may change between the phases, because FSDP2 goes by parameter; what it derives from that
once, at the first forward pass, has to be derived again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper
from torch.distributed.fsdp import FSDPModule

from securetune.errors import ConfigError


def require_fsdp2(accelerator: Accelerator) -> None:
    """Refuse FSDP1, which joins parameters that train and parameters that do not, and wraps modules for good.

    Raises:
        ConfigError: If that is what shards the model.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise ConfigError(
            "fsdp_version must be 2: FSDP1 shards parameters together that do not train together. Got "
            f"{plugin.fsdp_version}. configs/accelerate/fsdp2.yaml is an example."
        )


def keep_masters(model: nn.Module, accelerator: Accelerator) -> None:
    """Hold what any phase trains in float32 if FSDP2 computes in a lower precision.

    accelerate does so for what trains when it shards the model. What only a later phase trains would stay in the lower
    precision, and updates smaller than its steps would be lost.
    """
    if accelerator.distributed_type != DistributedType.FSDP or accelerator.mixed_precision == "no":
        return
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)


def expect_other_gradients(model: nn.Module) -> None:
    """Tell FSDP2 that other parameters train from now on.

    Its groups note the precision of their gradients at the first forward pass. A group that trained nothing then has
    noted none, and would hand bfloat16 gradients to float32 parameters.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                group._init_mp_dtypes()


def checkpoint_once(model: nn.Module, accelerator: Accelerator) -> None:
    """Keep FSDP's own activation checkpointing from being put around layers that an earlier phase has put it around."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and any(isinstance(module, ActivationWrapper) for module in model.modules()):
        plugin.activation_checkpointing = False


def require_readable_checkpoints(model: nn.Module, accelerator: Accelerator) -> None:
    """Refuse to resume where an adapter's weights would not be read back.

    With FSDP's own activation checkpointing the names in a sharded checkpoint of an adapter are not those that
    accelerate 1.15 and PEFT 0.21 look for, and they go on with the adapter as it was initialised, without a word.

    Raises:
        ConfigError: If the model is such.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.activation_checkpointing and isinstance(model, PeftModel):
        raise ConfigError(
            "resume_from_checkpoint: with fsdp_activation_checkpointing an adapter's checkpoint cannot be read back. "
            "Start again with fsdp_activation_checkpointing: false, and activation_checkpointing=True in the training "
            "arguments."
        )


@contextmanager
def saved_whole(accelerator: Accelerator) -> Iterator[None]:
    """Have a sharded model saved as a whole one meanwhile.

    transformers saves no weights at all where the state dict is to be sharded: that form is for checkpoints.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    before = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        plugin.set_state_dict_type(before)
