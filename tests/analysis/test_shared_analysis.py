"""An analysis shared among processes: real ones, joined over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_sweep import classifier, sweep

from securetune.analysis import Execution
from securetune.models import load, map_modules
from securetune.processes import Processes, launched_processes

TESTS = Path(__file__).parents[1]


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (
    # Without --multi_gpu it starts one process, without a word. No GPU is needed: what is exchanged goes over gloo.
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--rdzv_backend", "c10d", "--main_process_port", "0"),
)


def launch(*arguments: object, launcher: tuple[str, ...] = TORCHRUN) -> subprocess.CompletedProcess[str]:
    """Start two processes; the launcher chooses a free port."""
    paths = [str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def launch_sweep(model: Path, out: Path, *more: object) -> None:
    done = launch(TESTS / "analysis" / "shared_sweep.py", model, out, *more)
    assert done.returncode == 0, done.stderr


def test_two_processes_get_the_numbers_of_one(tiny_model_dir: Path, tmp_path: Path):
    """Bit for bit, each with half of the modules; what each had kept spares both the work the next time."""
    alone = sweep(str(tiny_model_dir), Execution())
    names = [module.name for module in map_modules(load(str(tiny_model_dir)).model)]
    for measured in (7, 0):
        launch_sweep(tiny_model_dir, tmp_path)
        parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
        for part in parts:
            assert part["count"] == 2
            assert torch.equal(part["values"], alone.readouts[classifier(0).name].perturbed)
            assert torch.equal(part["cosine"].nan_to_num(-2), alone.drift.cosine.nan_to_num(-2))
            assert len(part["modules"]) == measured
        shared = {*parts[0]["modules"], *parts[1]["modules"]}
        assert shared == (set(names) if measured else set())
    assert len(list((tmp_path / "partial").iterdir())) == 2


@pytest.mark.long
def test_accelerate_launches_the_processes_as_well(tiny_model_dir: Path, tmp_path: Path):
    """Two of them, not one as its launcher makes of `--cpu`; with the same numbers."""
    done = launch(TESTS / "analysis" / "shared_sweep.py", tiny_model_dir, tmp_path, launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    alone = sweep(str(tiny_model_dir), Execution())
    assert [part["count"] for part in parts] == [2, 2]
    assert all(torch.equal(part["values"], alone.readouts[classifier(0).name].perturbed) for part in parts)


@pytest.mark.parametrize("failing", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_failure_in_one_process_is_told_to_the_other(tiny_model_dir: Path, tmp_path: Path, failing: int):
    """It keeps its own error; the other says in one line which process failed and why, and nobody waits for ever."""
    launch_sweep(tiny_model_dir, tmp_path, failing)
    assert (tmp_path / f"{failing}.error").read_text() == "OSError: no space left"
    expected = f"OtherProcessError: process {failing} of 2 failed: OSError: no space left"
    assert (tmp_path / f"{1 - failing}.error").read_text() == expected


def test_the_command_speaks_with_one_voice(tmp_path: Path):
    """A mistake that all processes find is told once, with its exit status."""
    arguments = ["analyze", "tiny-world", "--out", tmp_path / "robustness.json", "--perturbation", "update"]
    done = launch("-m", "securetune", *arguments, "--data", "tiny-world")
    assert done.returncode != 0
    assert done.stderr.count("error: analysis.perturbation: update fine-tunes first, in one process") == 1
    assert list(tmp_path.iterdir()) == []


def test_one_process_alone_has_everything():
    """Without a launcher there is one, which is the main one and gathers what it gives."""
    with launched_processes() as processes:
        assert processes == Processes(0, 1)
    assert processes.is_main
    assert processes.gather("a") == ["a"]
    with pytest.raises(OSError, match="full"), processes.failing_together():
        raise OSError("full")


def test_shares_are_even_and_complete():
    """Whatever the number of items: each goes to one process, and no process has two more than another."""
    for count in (2, 3):
        for items in (range(0), range(1), range(7), range(9)):
            shares = [Processes(rank, count).share(items) for rank in range(count)]
            assert sorted(item for share in shares for item in share) == list(items)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
