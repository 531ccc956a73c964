"""Training shared by two real processes (DDP over gloo): the same as in one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_training import UPPER, run

TESTS = Path(__file__).parents[1]


def launch(model: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Start two processes."""
    folders = [TESTS, TESTS / "training", TESTS.parent / "src"]
    program = TESTS / "training" / "shared_training.py"
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *(str(program), str(model), str(out), *more),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def results(model: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    done = launch(model, out, *more)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = [torch.load(out / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert [(part["processes"], part["wrappers"]) for part in parts] == [(2, {"DDP"})] * 2
    return parts


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def is_robust(name: str) -> bool:
    return any(f"{path}." in name for path in UPPER)


@pytest.mark.parametrize(("method", "tune"), [("swat", "full"), ("ml-lr", "lora")])
def test_two_processes_train_what_one_does(tiny_model_dir: Path, tmp_path: Path, method: str, tune: str):
    """The same losses, replicas that are identical, and in the warm-up nothing moves but the robust modules."""
    parts = results(tiny_model_dir, tmp_path, "--method", method, *(["--lora"] if tune == "lora" else []))
    alone = run(tiny_model_dir, tmp_path / "alone", method, tune == "lora", processes=1)
    assert alone["wrappers"].isdisjoint({"DDP"})
    for part in parts:
        assert part["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert_same(parts[0]["end"], parts[1]["end"])
    if method == "swat":
        before, after = parts[0]["starts"]["warmup"], parts[0]["starts"]["main"]
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved
        assert all(is_robust(name) for name in moved)
        assert_same(parts[0]["starts"]["main"], parts[1]["starts"]["main"])


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """An adapter's warm-up and main phase without an interruption."""
    return results(tiny_model_dir, tmp_path_factory.mktemp("whole"), "--lora")


@pytest.mark.parametrize("stop", ["warmup-3", "main-1", pytest.param("main-3", marks=pytest.mark.long)])
def test_a_killed_training_of_two_processes_goes_on(
    whole: list[dict[str, Any]], tiny_model_dir: Path, tmp_path: Path, stop: str
):
    """Killed in the warm-up, at the boundary or in the main phase, it ends with the weights of a whole one."""
    assert launch(tiny_model_dir, tmp_path, "--lora", "--stop", stop).returncode != 0
    resumed = results(tiny_model_dir, tmp_path, "--lora", "--resume")
    for one, other in zip(whole, resumed, strict=True):
        assert_same(one["end"], other["end"])
