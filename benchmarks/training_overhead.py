"""What SWAT and ML-LR cost beside plain TRL: time of an optimizer step and peak memory, as ratios, in one run.

    python benchmarks/training_overhead.py [--sizes tiny-world small] [--steps 24] [--rounds 3] [--json]

`SecureSFTTrainer` with each method and TRL's `SFTTrainer` train the same model on the same rows in the same batches.
Each run has a process of its own, and the variants take turns, so that a busy machine slows all of them alike. A row:

- `time_ratio`: median time of a step over that of TRL's trainer in the same round, median over rounds; `time_ratio_low`
  and `time_ratio_high` are the extremes. On a CPU it is processor time, which leaves out what other programs take.
- `memory_ratio`: peak memory while training over TRL's, both including the model.
- `phase`: the warm-up trains half of the layers alone, so its ratio is below 1 where backward passes and AdamW count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from securetune import SecureSFTConfig, SecureSFTTrainer
from securetune.artifacts import environment
from securetune.data.conversations import read_conversations
from securetune.models import load, map_modules

STEPS_LEFT_OUT = 3
"""Of each phase: the first ones warm up caches."""

TRL = "trl"
VARIANTS = (TRL, "ift", "ml-lr", "swat")


class Size(NamedTuple):
    """A model and how it is trained.

    Attributes:
        shape: Layers and width of a Llama with random weights, or None for tiny world.
        batch_size: Rows a step.
    """

    shape: tuple[int, int] | None
    batch_size: int


SIZES = {
    "tiny-world": Size(None, 32),
    "small": Size((12, 512), 8),
    "1B": Size((16, 2048), 8),
    "7B": Size((32, 4096), 4),
}


class Run(NamedTuple):
    """One run of one variant: seconds of each step by phase, and peak memory in bytes."""

    step_seconds: dict[str, list[float]]
    peak_bytes: int


class Clock(TrainerCallback):
    """Notes the end of each step, by phase."""

    def __init__(self) -> None:
        self.ends: dict[str, list[float]] = defaultdict(list)

    def on_step_end(self, args: Any, *arguments: Any, **named: Any) -> None:
        """Note the time."""
        phase = "warmup" if str(args.output_dir).endswith("warmup") else "main"
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends[phase].append(time.perf_counter() if torch.cuda.is_available() else time.process_time())

    def step_seconds(self) -> dict[str, list[float]]:
        """Return the times between ends of steps."""
        return {
            phase: [after - before for before, after in itertools.pairwise(ends[STEPS_LEFT_OUT:])]
            for phase, ends in self.ends.items()
        }


Maker = Callable[..., SFTTrainer]
"""Makes a variant's trainer: called as `make_trainer`."""


def train(variant: str, size: Size, steps: int, make: Maker | None = None) -> Run:
    """Train once; to be called in a process of its own."""
    torch.set_num_threads(1)  # small matrices gain nothing from a second thread
    logging.set_verbosity_error()
    chat, on_gpu = load("tiny-world"), torch.cuda.is_available()
    model = chat.model if size.shape is None else random_llama(*size.shape, len(chat.tokenizer), on_gpu)
    rows = [
        {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
        for row in read_conversations("tiny-world", count=2 * steps * size.batch_size)
    ]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = (make or make_trainer)(variant, model, folder, size, steps, train_dataset=Dataset.from_list(rows),
                               processing_class=chat.tokenizer, callbacks=[clock])  # fmt: skip
        trainer.remove_callback(PrinterCallback)  # stdout is for the result
        trainer.train()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Run(clock.step_seconds(), peak)


def shared_arguments(size: Size, steps: int) -> dict[str, Any]:
    """Return the training arguments that all variants have."""
    on_gpu = torch.cuda.is_available()
    return {
        "max_steps": steps,
        "per_device_train_batch_size": size.batch_size,
        "learning_rate": 1e-5,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "activation_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
    }


def make_trainer(variant: str, model: Any, folder: str, size: Size, steps: int, **arguments: Any) -> SFTTrainer:
    """Return TRL's trainer, or ours with a method; what both share is the same."""
    shared = shared_arguments(size, steps)
    if variant == TRL:
        return SFTTrainer(model, SFTConfig(folder, **shared), **arguments)
    modules = map_modules(model)
    upper = [module.name for module in modules if 2 * module.layer > max(module.layer for module in modules)]
    config = SecureSFTConfig(folder, method=variant, robust_modules=upper, warmup_phase_steps=steps, **shared)
    return SecureSFTTrainer(model, config, **arguments)


def random_llama(layers: int, width: int, vocabulary: int, on_gpu: bool) -> LlamaForCausalLM:
    """Return a Llama with random weights; in bfloat16 on a GPU."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64,
    )  # fmt: skip
    with torch.device("cuda" if on_gpu else "cpu"):
        model = LlamaForCausalLM(config)
    return model.bfloat16() if on_gpu else model


def measure(name: str, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Run all variants in turn and return the rows of one size."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for number in range(rounds):
        for variant in VARIANTS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                runs[variant].append(pool.apply(train, (variant, SIZES[name], steps)))
            print(f"{name}: round {number + 1}, {variant} done", file=sys.stderr)
    return [row for variant in VARIANTS for row in rows_of(name, variant, runs[variant], runs[TRL])]


def rows_of(
    name: str,
    variant: str,
    runs: list[Run],
    plain: list[Run],
    average: Callable[[list[float]], float] = statistics.median,
) -> list[dict[str, Any]]:
    """Compare a variant's phases with TRL's runs of the same rounds, by the average of a run's steps."""
    rows = []
    for phase in runs[0].step_seconds:
        seconds = [average(run.step_seconds[phase]) for run in runs]
        ratios = [mine / average(other.step_seconds["main"]) for mine, other in zip(seconds, plain, strict=True)]
        memory = [mine.peak_bytes / other.peak_bytes for mine, other in zip(runs, plain, strict=True)]
        rows.append(
            {
                "size": name,
                "method": variant,
                "phase": phase,
                "step_seconds": statistics.median(seconds),
                "time_ratio": statistics.median(ratios),
                "time_ratio_low": min(ratios),
                "time_ratio_high": max(ratios),
                "peak_mib": statistics.median(run.peak_bytes for run in runs) / 2**20,
                "memory_ratio": statistics.median(memory),
            }
        )
    return rows


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: those that the machine should hold")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps a phase")
    parser.add_argument("--rounds", type=int, default=3, help="runs a variant")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    sizes = arguments.sizes or (list(SIZES) if torch.cuda.is_available() else ["tiny-world", "small"])
    rows = [row for name in sizes for row in measure(name, arguments.steps, arguments.rounds)]
    if arguments.json:
        print(json.dumps({"rows": rows, "environment": environment()}, indent=2))
        return
    print(f"{'size':12}{'method':8}{'phase':8}{'ms a step':>10}{'/ TRL':>8}{'low':>7}{'high':>7}{'memory / TRL':>14}")
    for row in rows:
        print(
            f"{row['size']:12}{row['method']:8}{row['phase']:8}{1000 * row['step_seconds']:10.1f}"
            f"{row['time_ratio']:8.3f}{row['time_ratio_low']:7.3f}{row['time_ratio_high']:7.3f}{row['memory_ratio']:14.3f}"
        )


if __name__ == "__main__":
    main()
