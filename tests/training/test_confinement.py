"""One confined weight: as the formula says, in place, in other precisions, and in shards as when it is whole."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
import torch
from confined_shards import CASES, SHARES, make_case
from launching import ENVIRONMENT, TESTS, TORCHRUN

from securetune.defenses.protected_subspace.confinement import Basis, ConfinedWeight
from securetune.defenses.protected_subspace.full_float32 import full_float32


def by_formula(confined: ConfinedWeight, weight: torch.Tensor) -> torch.Tensor:
    """Compute W − (W U − W₀ U) diag(s) Uᵀ, each output with its own shares s, in float64."""
    oriented = (weight.T if confined.transposed else weight).double().clone()
    assert confined.anchor is not None
    shares = torch.ones(confined.rank) if confined.shares is None else confined.shares
    directions = confined.basis.vectors[:, : confined.rank].double()
    for row, own in enumerate(shares.double().expand(len(oriented), -1)):
        oriented[row] -= directions @ (own * (oriented[row] @ directions - confined.anchor[row].double()))
    return oriented.T if confined.transposed else oriented


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_confined_as_the_formula_says(transposed: bool, shares: str) -> None:
    """Either way round, with the same directions for all outputs or not; whole shares twice are the same as once."""
    confined, weight = make_case(transposed, shares)
    expected = by_formula(confined, weight)
    parameter = torch.nn.Parameter(weight.clone())
    place = parameter.data_ptr()
    confined.confine(parameter)
    torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-5)
    once = parameter.detach().clone()
    confined.confine(parameter)
    again = by_formula(confined, once).float()
    torch.testing.assert_close(parameter.detach(), again, rtol=1e-5, atol=1e-5)
    if "pulled" not in shares:
        torch.testing.assert_close(parameter.detach(), once, rtol=1e-5, atol=1e-6)
    assert parameter.data_ptr() == place


@pytest.mark.parametrize("shares", SHARES)
def test_several_steps_are_taken_back_at_once(shares: str) -> None:
    """Of a weight that does not move meanwhile, three at once equal three in turn, and none the whole shares alone."""
    confined, weight = make_case(transposed=False, shares=shares)
    in_turn, at_once = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(weight.clone())
    for _ in range(3):
        confined.confine(in_turn)
    confined.confine(at_once, steps=3)
    torch.testing.assert_close(at_once.detach(), in_turn.detach(), rtol=1e-5, atol=1e-5)
    none = torch.nn.Parameter(weight.clone())
    confined.confine(none, steps=0)
    whole, _ = make_case(transposed=False, shares=shares)
    whole.shares = None if confined.shares is None else (confined.shares == 1).float()
    torch.testing.assert_close(none.double(), by_formula(whole, weight), rtol=1e-5, atol=1e-5)


def test_a_weight_in_bfloat16_is_confined_to_its_precision() -> None:
    """The product is computed in float32 and rounded once."""
    confined, weight = make_case(transposed=False, shares="all")
    parameter = torch.nn.Parameter(weight.bfloat16())
    expected = by_formula(confined, parameter.detach())
    confined.confine(parameter)
    torch.testing.assert_close(parameter.double(), expected, rtol=2e-2, atol=2e-2)


def test_weights_with_one_input_share_its_directions() -> None:
    """They are views of one basis, also after a move to another device or precision of the weights."""
    basis = Basis(torch.linalg.qr(torch.randn(9, 9))[0])
    assert basis.leading(3, torch.device("cpu")).data_ptr() == basis.leading(5, torch.device("cpu")).data_ptr()
    moved = basis.leading(3, torch.device("meta"))
    assert moved.device.type == basis.vectors.device.type == "meta"


@pytest.mark.parametrize("turned_on", ["no", "medium", "high"])
def test_products_have_all_their_bits(turned_on: str) -> None:
    """Within, neither TF32 nor bfloat16 is used, however it was turned on; afterwards, it is as it was before."""
    kept = torch.get_float32_matmul_precision()
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    try:
        if turned_on != "no":
            torch.set_float32_matmul_precision(turned_on)
        before = [backend.fp32_precision for backend in backends]
        with contextlib.suppress(KeyError), full_float32():
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
            raise KeyError
        assert [backend.fp32_precision for backend in backends] == before
        assert (before[0] == "tf32") == (turned_on != "no")
    finally:
        torch.set_float32_matmul_precision(kept)


@pytest.mark.long
def test_shards_are_confined_as_the_whole(tmp_path: Path) -> None:
    """Rows or columns in two processes, of sizes that two does not divide, give the weight of one process."""
    done = subprocess.run(
        [*TORCHRUN, str(TESTS / "training" / "confined_shards.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent / "src"), **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for number, (transposed, _, shares) in enumerate(CASES):
        confined, weight = make_case(transposed, shares)
        expected = by_formula(confined, by_formula(confined, weight))  # they are confined twice
        found = torch.load(tmp_path / f"{number}.pt")
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5, msg=str(CASES[number]))
        confined.shares = None if confined.shares is None else (confined.shares == 1).float()
        cut = torch.load(tmp_path / f"{number}-cut.pt")
        torch.testing.assert_close(cut.double(), by_formula(confined, weight), rtol=1e-5, atol=1e-5)
