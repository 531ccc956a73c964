"""The norm of a sum of outer products, without the sum: what a per-prompt weight gradient's size costs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class OuterProductNorms:
    """‖Σ_t g_t a_tᵀ‖_F² of each prompt, by Gram matrices or directly, whichever takes fewer operations.

    Q, K and V have the same input, and so have Gate and Up: its Gram matrix is made once. The products are float32, or
    float64 for a model in float64: half precision would lose digits in sums of thousands of terms.
    """

    def __init__(self) -> None:
        self._inputs: Tensor | None = None
        self._gram: Tensor | None = None

    def squared(
        self, inputs: Float[Tensor, "batch seq in"], gradients: Float[Tensor, "batch seq out"]
    ) -> Float[Tensor, " batch"]:
        """Return the squared norms, in float64."""
        precision = torch.promote_types(inputs.dtype, torch.float32)
        tokens, wide, high = inputs.shape[1], inputs.shape[2], gradients.shape[2]
        g = gradients.to(precision)
        if tokens * (wide + high) < wide * high:
            squared = (self._gram_of(inputs, precision) * (g @ g.mT)).sum(dim=(1, 2), dtype=torch.float64)
        else:
            squared = (g.mT @ inputs.to(precision)).square().sum(dim=(1, 2), dtype=torch.float64)
        return squared.clamp_min(0)

    def _gram_of(self, inputs: Tensor, precision: torch.dtype) -> Tensor:
        if self._gram is None or self._inputs is None or not _is_same_view(self._inputs, inputs):
            a = inputs.to(precision)
            self._inputs, self._gram = inputs, a @ a.mT
        return self._gram


def _is_same_view(first: Tensor, second: Tensor) -> bool:
    """Tell whether two living tensors are the same numbers at the same place."""
    return (first.data_ptr(), first.shape, first.stride(), first.dtype) == (
        second.data_ptr(),
        second.shape,
        second.stride(),
        second.dtype,
    )
