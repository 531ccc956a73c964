"""Leading directions of inputs too wide for their whole second moment: a randomised range finder, in one pass.

Symbols: A = Σ x·xᵀ over the tokens x, Ω has k + p orthonormal random columns, Y = A·Ω.
Only Y = Σ x·(xᵀΩ) is kept, d·(k + p) values instead of d², and the trace Σ ‖x‖², exactly. From it comes Nyström's
approximation Y·(ΩᵀY)⁻¹·Yᵀ and its eigenvectors. It never exceeds A (A minus it is positive semi-definite), so what its
directions hold of the trace is at least what its values say: a share of the energy is reached, with some directions
more than the exact way would take.

Source: Halko, Martinsson and Tropp, arXiv 0909.4061, section 5.4 (Nyström's method for positive semi-definite matrices;
p: section 4.2), stabilised by a small shift as in Tropp et al., arXiv 1706.05736, algorithm 3. Ours: eigenvalues in
place of the Cholesky factor, because sums in float32 may leave ΩᵀY indefinite, and a shift for float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from securetune.defenses.protected_subspace.input_moments import InputStatistics, SecondMoment
from securetune.defenses.protected_subspace.spectrum import InputSpectrum

RangeFinder = Literal["auto", "exact", "randomised"]

EXACT_UP_TO = 4096
"""Widest input whose whole second moment `auto` keeps: 64 MiB in float32, and seconds to decompose."""

OVERSAMPLING = 16
"""p: columns beyond the directions that are used; 5 to 10 suffice (section 4.2), and more cost next to nothing."""


class RandomisedRange:
    """A sketch of a second moment, and its exact trace.

    Attributes:
        test_matrix: Ω; inputs of the same width share it.
        sketch: Y.
        trace: Σ ‖x‖², in float64.

    Args:
        test_matrix: Ω.
        size: k: most directions that are given; Ω has more columns.
    """

    def __init__(self, test_matrix: Float[Tensor, "_in column"], size: int) -> None:
        self.test_matrix = test_matrix
        self.sketch: Float[Tensor, "_in column"] = torch.zeros_like(test_matrix)
        self.trace = torch.zeros((), dtype=torch.float64, device=test_matrix.device)
        self._size = size

    def add(self, tokens: Float[Tensor, "token _in"]) -> None:
        """Take in tokens."""
        self.sketch.addmm_(tokens.T, tokens @ self.test_matrix)
        self.trace += tokens.square().sum(dtype=torch.float64)

    def spectrum(self) -> InputSpectrum:
        """Return the eigenvectors of Nyström's approximation."""
        test, sketch = self.test_matrix.double(), self.sketch.double()
        shift = math.sqrt(len(sketch)) * torch.finfo(torch.float32).eps * float(torch.linalg.matrix_norm(sketch))
        sketch = sketch + shift * test
        core = test.T @ sketch
        weights, turns = torch.linalg.eigh((core + core.T) / 2)
        usable = weights > 0.1 * shift  # the shift alone gives 1 of it; below, there is nothing but rounding
        root = (sketch @ turns[:, usable]) / weights[usable].sqrt()
        vectors, singular, _ = torch.linalg.svd(root, full_matrices=False)
        values = (singular.square() - shift).clamp_min(0)[: self._size]
        return InputSpectrum(values, vectors[:, : self._size].float(), float(self.trace), "randomised")


def statistics_maker(
    finder: RangeFinder, sketch_size: int, seed: int
) -> Callable[[int, torch.device], InputStatistics]:
    """Return what makes empty statistics for an input of some width.

    The sketch is never taken where it would hold as much as the whole second moment. Its draws depend on the seed and
    the width alone, and are made on the CPU: the same on every device, whatever else is drawn.

    Args:
        finder: `exact`; `randomised`; `auto`: randomised for inputs wider than `EXACT_UP_TO`.
        sketch_size: k.
        seed: Of Ω.
    """
    test_matrices: dict[tuple[int, torch.device], Tensor] = {}

    def make(width: int, device: torch.device) -> InputStatistics:
        columns = sketch_size + OVERSAMPLING
        wants_exact = finder == "exact" or (finder == "auto" and width <= EXACT_UP_TO)
        if wants_exact or columns >= width:
            return SecondMoment(width, device)
        if (width, device) not in test_matrices:
            draws = torch.randn(width, columns, generator=torch.Generator().manual_seed(seed))
            test_matrices[width, device] = torch.linalg.qr(draws)[0].to(device)
        return RandomisedRange(test_matrices[width, device], sketch_size)

    return make
