"""The directions in which tokens enter a projection, in the order of how much of them they hold."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_PULL = 1e-3
"""Directions that a step would pull back by less than this share are left alone: each costs memory and time."""


class InputSpectrum(NamedTuple):
    """Leading eigenvectors of a second moment.

    Attributes:
        values: How much of the trace each direction holds, in descending order, in float64.
        vectors: The directions, orthonormal, one a column, in float32.
        trace: Of the whole second moment, also of what no direction here holds.
        finder: `exact`, or `randomised`: the values are then lower bounds, and directions beyond these are not known.
    """

    values: Float[Tensor, " _rank"]
    vectors: Float[Tensor, "_in _rank"]
    trace: float
    finder: Literal["exact", "randomised"]

    def rank_for(self, energy: float) -> int:
        """Return the number of the fewest leading directions that hold a share of the trace, or of all if none do.

        Args:
            energy: Share in [0, 1); 0 needs no direction.
        """
        if energy == 0 or self.trace == 0:
            return 0
        held = torch.cumsum(self.values, 0) / self.trace
        return min(int(torch.searchsorted(held, energy).item()) + 1, len(self.values))

    def held(self, rank: int) -> float:
        """Return the share of the trace that the first directions hold, in [0, 1]."""
        return 1.0 if self.trace == 0 else min(1.0, float(self.values[:rank].sum()) / self.trace)

    def shares(self, energy: float, tail_pull: float = 0.0) -> Float[Tensor, " rank"]:
        """Return the share of the update that is taken back in each leading direction, as far as any is.

        It is 1 in the directions that hold the energy, and beyond them `tail_pull` times the direction's eigenvalue
        over that of the last of these.

        Args:
            energy: As in `rank_for`.
            tail_pull: Share in [0, 1] at the end of the protected directions.

        Example:
            >>> spectrum = InputSpectrum(torch.tensor([8.0, 1.0, 0.5, 0.5]).double(), torch.eye(4), 10.0, "exact")
            >>> spectrum.shares(0.9, tail_pull=0.4)
            tensor([1.0000, 1.0000, 0.2000, 0.2000])
        """
        rank = self.rank_for(energy)
        found = torch.ones(rank)
        if rank == 0 or tail_pull == 0 or self.values[rank - 1] == 0:
            return found
        tail = (tail_pull * self.values[rank:] / self.values[rank - 1]).to(found)
        return torch.cat([found, tail[tail >= LEAST_PULL]])

    def cut(self, rank: int) -> InputSpectrum:
        """Return the first directions alone, in memory of their own.

        They lie row by row, as they do when read from a file: products then have the same bits.
        """
        vectors = self.vectors[:, :rank].clone(memory_format=torch.contiguous_format)
        return self._replace(values=self.values[:rank].clone(), vectors=vectors)

    def on_cpu(self) -> InputSpectrum:
        """Return it in the memory of the CPU."""
        return self._replace(values=self.values.cpu(), vectors=self.vectors.cpu())


def exact_spectrum(moment: Float[Tensor, "_in _in"]) -> InputSpectrum:
    """Return all eigenvectors of a symmetric, positive semi-definite matrix.

    They are computed in the precision of its sums. In float64 they took as long as the forward passes of wide models,
    and what was gathered in float32 has no bits for it to find.
    """
    values, vectors = torch.linalg.eigh(moment)
    values = values.double().flip(0).clamp_min(0)
    return InputSpectrum(values, vectors.flip(1).float(), float(values.sum()), "exact")
