"""Weights of which each process holds a part: FSDP2's DTensors, and what DeepSpeed's ZeRO-3 leaves of a parameter.

Under ZeRO-3 a parameter is an empty tensor that knows its whole shape, until its values are gathered. Every process
must ask for the same parameters in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_SHAPE = "ds_shape"
"""DeepSpeed's name for the shape of the whole parameter, on each that it has divided."""


def whole(values: Tensor) -> Tensor:
    """Return the values without their gradient, gathered from all processes if each holds a part."""
    plain = values.detach()
    if isinstance(plain, DTensor):
        return plain.full_tensor()
    if not hasattr(values, _SHAPE):
        return plain
    with _gathered(values, writes=False):
        return values.detach().clone()  # the values go when the context ends


def whole_shape(values: Tensor) -> torch.Size:
    """Return the shape of all the values, gathered or not."""
    return torch.Size(getattr(values, _SHAPE, values.shape))


def write_whole(target: Tensor, values: Tensor) -> None:
    """Copy whole values into a parameter, of which each process may hold a part; all give the same values."""
    with torch.no_grad(), _gathered(target, writes=True):
        target.copy_(values)


@contextmanager
def _gathered(values: Tensor, writes: bool) -> Iterator[None]:
    if not hasattr(values, _SHAPE):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([values], modifier_rank=0 if writes else None):
        yield
