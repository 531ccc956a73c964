"""Two processes that each confine their shard of a weight; started by `test_confinement.py`."""

import sys
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from securetune.defenses.protected_subspace.confinement import Basis, ConfinedWeight

SHARES = {
    "all": None,
    "by output": (torch.arange(4) < torch.tensor([4, 4, 1, 0, 2, 4, 3])[:, None]).float(),
    "pulled": torch.tensor([1.0, 1.0, 0.3, 0.1]),
    "pulled by output": torch.tensor([[1.0, 1.0, 0.3, 0.1], [1.0, 0.5, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0]])[
        [0, 0, 1, 2, 1, 0, 2]
    ],
}
"""What is taken back of an update: in all four directions, in some for each output, in part, and both."""

CASES = [(transposed, axis, shares) for transposed in (False, True) for axis in (0, 1) for shares in SHARES]
"""How the weight is stored, which of its axes is divided, and what is taken back of its update."""


def make_case(transposed: bool, shares: str) -> tuple[ConfinedWeight, torch.Tensor]:
    """Return what to confine, anchored in other weights, and the weight: 7 outputs and 9 inputs, both odd."""
    generator = torch.Generator().manual_seed(5)
    basis = Basis(torch.linalg.qr(torch.randn(9, 9, generator=generator))[0][:, :6].contiguous())
    start, weight = torch.randn(2, *((9, 7) if transposed else (7, 9)), generator=generator)
    confined = ConfinedWeight("weight", basis, 4, transposed=transposed, shares=SHARES[shares])
    confined.anchor = confined.anchored(start)
    return confined, weight


def main(folder: Path) -> None:
    """Confine each case in shards, and write the whole of what comes out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for number, (transposed, axis, shares) in enumerate(CASES):
        confined, weight = make_case(transposed, shares)
        shards = torch.nn.Parameter(distribute_tensor(weight, mesh, [Shard(axis)]))
        for _ in range(2):  # a second time, with the constants of the first
            confined.confine(shards)
        assert isinstance(shards.data, DTensor)
        whole = shards.detach().full_tensor()
        if torch.distributed.get_rank() == 0:
            torch.save(whole, folder / f"{number}.pt")
        cut = torch.nn.Parameter(distribute_tensor(weight, mesh, [Shard(axis)]))
        confined.confine(cut, steps=0)
        assert isinstance(cut.data, DTensor)
        whole = cut.detach().full_tensor()
        if torch.distributed.get_rank() == 0:
            torch.save(whole, folder / f"{number}-cut.pt")
    torch.distributed.barrier()  # one that ends while the other still talks to it can be aborted
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
