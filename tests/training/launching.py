"""How the tests start a training in two real processes over gloo: by DDP, by FSDP2 and by DeepSpeed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from shared_training import UPPER

TESTS = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def accelerate(file: str, *more: str) -> list[str]:
    """Return a command with a launch configuration that is shipped."""
    path = TESTS.parent / "configs" / "accelerate" / file
    begin = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    return [*begin, "--config_file", str(path), *more]


LAUNCHERS = {
    "DDP": TORCHRUN,
    "FSDP 2 layers, 0 checkpointed": accelerate("fsdp2.yaml", "--mixed_precision", "no"),
    "FSDP 2 layers, 2 checkpointed": accelerate(
        "fsdp2.yaml", "--mixed_precision", "no", "--fsdp_activation_checkpointing", "true"
    ),
    "bf16": accelerate("fsdp2.yaml", "--mixed_precision", "bf16"),
    "ZeRO-2": accelerate("deepspeed_zero2.yaml", "--mixed_precision", "no"),
    "ZeRO-3": accelerate("deepspeed_zero3.yaml", "--mixed_precision", "no"),
    "ZeRO-2 bf16": accelerate("deepspeed_zero2.yaml", "--mixed_precision", "bf16"),
    "ZeRO-3 bf16": accelerate("deepspeed_zero3.yaml", "--mixed_precision", "bf16"),
}
SHARDED = "FSDP 2 layers, 0 checkpointed"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def launch(model: Path, out: Path, *more: str, how: str = "DDP") -> subprocess.CompletedProcess[str]:
    """Start two processes."""
    folders = [TESTS, TESTS / "training", TESTS.parent / "src"]
    program = TESTS / "training" / "shared_training.py"
    return subprocess.run(
        [*LAUNCHERS[how], str(program), str(model), str(out), *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
    )


def results(model: Path, out: Path, *more: str, how: str = "DDP") -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    done = launch(model, out, *more, how=how)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = [torch.load(out / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    wrapped = SHARDED if how == "bf16" else how.removesuffix(" bf16")
    assert [(part["processes"], part["wrappers"]) for part in parts] == [(2, {wrapped})] * 2
    return parts


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def is_robust(name: str) -> bool:
    return any(f"{path}." in name for path in UPPER)
