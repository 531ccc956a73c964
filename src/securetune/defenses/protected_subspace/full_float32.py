"""Products in all bits of float32, whatever the training allows itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply without TF32 or bfloat16 meanwhile.

    A training may turn them on for speed. W U − W₀ U is a small difference of large products: with TF32's ten bits it
    would be their rounding, of which every step would write some into the weights.
    """
    before = [backend.fp32_precision for backend in _BACKENDS]
    try:
        for backend in _BACKENDS:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(_BACKENDS, before, strict=True):
            backend.fp32_precision = precision
