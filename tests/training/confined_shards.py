"""Two processes that each confine their shard of a weight; started by `test_confinement.py`."""

import sys
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from securetune.defenses.protected_subspace.confinement import Basis, ConfinedWeight

CASES = [(transposed, axis, mixed) for transposed in (False, True) for axis in (0, 1) for mixed in (False, True)]
"""How the weight is stored, which of its axes is divided, and whether outputs have different numbers of directions."""


def make_case(transposed: bool, mixed: bool) -> tuple[ConfinedWeight, torch.Tensor]:
    """Return what to confine, anchored in other weights, and the weight: 7 outputs and 9 inputs, both odd."""
    generator = torch.Generator().manual_seed(5)
    basis = Basis(torch.linalg.qr(torch.randn(9, 9, generator=generator))[0][:, :6].contiguous())
    start, weight = torch.randn(2, *((9, 7) if transposed else (7, 9)), generator=generator)
    row_ranks = torch.tensor([4, 4, 1, 0, 2, 4, 3]) if mixed else None
    confined = ConfinedWeight("weight", basis, 4, transposed=transposed, row_ranks=row_ranks)
    confined.anchor = confined.anchored(start)
    return confined, weight


def main(folder: Path) -> None:
    """Confine each case in shards, and write the whole of what comes out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for number, (transposed, axis, mixed) in enumerate(CASES):
        confined, weight = make_case(transposed, mixed)
        shards = torch.nn.Parameter(distribute_tensor(weight, mesh, [Shard(axis)]))
        for _ in range(2):  # a second time, with the constants of the first
            confined.confine(shards)
        assert isinstance(shards.data, DTensor)
        whole = shards.detach().full_tensor()
        if torch.distributed.get_rank() == 0:
            torch.save(whole, folder / f"{number}.pt")
    torch.distributed.barrier()  # one that ends while the other still talks to it can be aborted
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
