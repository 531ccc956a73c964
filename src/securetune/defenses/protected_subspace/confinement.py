"""One parameter whose update has no effect on protected inputs, whole in each process or in shards (FSDP2).

Symbols: W is the parameter as (outputs, inputs); U are the directions, orthonormal, one a column; W₀ U is the anchor.
The step is W ← W − (W U − W₀ U) Uᵀ, for an adapter's A without an anchor: two multiplications of the parameter's size
times the number of directions. It is computed in float32, in place where the parameter is float32 too. With shares s
the step is W ← W − (W U − W₀ U) diag(s) Uᵀ: the update keeps 1 − s of what it is in a direction, step after step. For n
steps at once the shares are 1 − (1 − s)ⁿ; for none, the directions with a share of 1 alone count.

In shards, each process keeps the rows of W₀ U that belong to its rows of W, and nothing has to be exchanged. Where the
inputs are divided instead (GPT-2 stores its matrices the other way round), it keeps its rows of U, and the small
product W U is added up over the processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from securetune.errors import ConfigError


class Basis:
    """The directions of an input, in one place for all weights that have it, on whichever device these train.

    Attributes:
        vectors: Orthonormal, one a column, the leading ones first.
    """

    def __init__(self, vectors: Float[Tensor, "_in _rank"]) -> None:
        self.vectors = vectors

    def leading(self, rank: int, device: torch.device) -> Float[Tensor, "_in _rank"]:
        """Return the leading directions, as a view."""
        if self.vectors.device != device:
            self.vectors = self.vectors.to(device)
        return self.vectors[:, :rank]


class _Here(NamedTuple):
    """What a process needs of the constants for its part of a parameter.

    Attributes:
        parameter: Whose part.
        directions: U, or the rows of it that meet this part's inputs.
        anchor: W₀ U, or the rows of it that belong to this part's outputs; None for an adapter.
        shares: What is taken back in each direction, for all outputs or, in rows, for each; None: everything.
        summed: Mesh and placements (before and after) of W U where it must be added up over processes, or None.
    """

    parameter: Tensor
    directions: Float[Tensor, "_in rank"]
    anchor: Float[Tensor, "_out rank"] | None
    shares: Float[Tensor, "*_out rank"] | None
    summed: tuple[DeviceMesh, Sequence[Placement], Sequence[Placement]] | None

    def for_steps(self, steps: int) -> _Here:
        """Return what takes back as much at once as so many steps would; with 0, what is taken back entirely."""
        if self.shares is None or steps == 1:
            return self
        if steps > 1:
            return self._replace(shares=1 - (1 - self.shares) ** steps)
        whole = self.shares == 1
        rank = int(whole.reshape(-1, whole.shape[-1]).any(0).sum())  # the leading ones: shares descend
        shares = None if bool(whole[..., :rank].all()) else whole[..., :rank].to(self.shares)
        anchor = None if self.anchor is None else self.anchor[:, :rank]
        return self._replace(directions=self.directions[:, :rank], anchor=anchor, shares=shares)


class ConfinedWeight:
    """One parameter and what is protected of it.

    Args:
        name: The parameter's, as `named_parameters()` of the model alone gives it.
        basis: The directions of its input.
        rank: Number of leading ones that are U.
        is_adapter: Whether it is an adapter's A, of which nothing is to pass in these directions; it has no anchor.
        transposed: Whether the parameter is stored (inputs, outputs).
        shares: What is taken back of the update in each direction, in [0, 1], for all outputs or in rows of their own;
            None: everything.

    Attributes:
        anchor: W₀ U, which has to be set before a weight is confined; None for an adapter.
    """

    def __init__(
        self,
        name: str,
        basis: Basis,
        rank: int,
        is_adapter: bool = False,
        transposed: bool = False,
        shares: Float[Tensor, "*_out rank"] | None = None,
    ) -> None:
        self.name = name
        self.basis = basis
        self.rank = rank
        self.is_adapter = is_adapter
        self.anchor: Float[Tensor, "_out rank"] | None = None
        self.transposed = transposed
        self.shares = shares
        self._here: dict[int, _Here] = {}

    @torch.no_grad()
    def anchored(self, parameter: Tensor) -> Float[Tensor, "_out rank"]:
        """Return what a parameter, whole in this process, does to the directions."""
        weight = parameter.mT if self.transposed else parameter
        return weight.float() @ self.basis.leading(self.rank, weight.device)

    @torch.no_grad()
    def confine(self, parameter: Tensor, steps: int = 1) -> None:
        """Take out of a parameter, in place, what its update does to the protected inputs.

        Args:
            parameter: The parameter, or this process's shard of it.
            steps: How many steps' shares are taken back at once; 0: only what is taken back entirely.

        Raises:
            ConfigError: If it is divided in a way that is not known here.
        """
        here = self._constants_for(parameter, steps)
        stored = parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
        weight = stored.mT if self.transposed else stored
        moved = _moved(weight.float(), here)  # a copy only where the parameter is not float32 yet
        if weight.dtype == torch.float32:
            weight.addmm_(moved, here.directions.mT, alpha=-1)
        else:
            weight.sub_((moved @ here.directions.mT).to(weight.dtype))

    def _constants_for(self, parameter: Tensor, steps: int) -> _Here:
        """Return what this process needs, made anew where the parameter was sharded or moved since."""
        here = self._here.get(1)
        if here is None or here.parameter is not parameter or here.directions.device != parameter.device:
            here = self._divided(parameter) if isinstance(parameter, DTensor) else self._whole(parameter)
            self._here = {1: here}
        if steps not in self._here:
            self._here[steps] = here.for_steps(steps)
        return self._here[steps]

    def _whole(self, parameter: Tensor) -> _Here:
        def here(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(parameter.device)

        directions = self.basis.leading(self.rank, parameter.device)
        return _Here(parameter, directions, here(self.anchor), here(self.shares), None)

    def _divided(self, parameter: DTensor) -> _Here:
        mesh, placements = parameter.device_mesh, parameter.placements
        inputs = 0 if self.transposed else 1
        if any(not placement.is_replicate() and type(placement) is not Shard for placement in placements):
            raise ConfigError(f"protected-subspace cannot confine {self.name}, which is divided by {placements}")
        at_inputs = [placement == Shard(inputs) for placement in placements]
        by_input = [Shard(0) if at else Replicate() for at in at_inputs]
        by_output = [Shard(0) if placement == Shard(1 - inputs) else Replicate() for placement in placements]
        before = [Partial() if at else place for at, place in zip(at_inputs, by_output, strict=True)]

        def own(value: Tensor | None, places: Sequence[Placement]) -> Tensor | None:
            if value is None:
                return None
            there = value.to(parameter.device)
            return distribute_tensor(there, mesh, places, src_data_rank=None).to_local()

        whole = self.basis.leading(self.rank, parameter.device)
        directions = own(whole, by_input) if any(at_inputs) else whole
        assert directions is not None
        summed = (mesh, before, by_output) if any(at_inputs) else None
        places = by_output if self.shares is not None and self.shares.ndim > 1 else [Replicate()] * len(by_output)
        return _Here(parameter, directions, own(self.anchor, by_output), own(self.shares, places), summed)


def _moved(weight: Float[Tensor, "_out _in"], here: _Here) -> Float[Tensor, "_out rank"]:
    """Return W U − W₀ U, as far as it counts."""
    if here.summed is None and here.anchor is not None:
        moved = torch.addmm(here.anchor, weight, here.directions, beta=-1)
    else:
        moved = weight @ here.directions
        if here.summed is not None:
            mesh, before, after = here.summed
            moved = DTensor.from_local(moved, mesh, before).redistribute(mesh, after).to_local()
        if here.anchor is not None:
            moved = moved - here.anchor
    return moved if here.shares is None else moved * here.shares
