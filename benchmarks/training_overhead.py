"""Time a training step of securetune against plain TRL and a bare loop, on the same model and data, in one run.

    python benchmarks/training_overhead.py [--model tiny-world] [--steps 40] [--rounds 3] [--json]

The variants take turns, round by round, so that a busy machine slows all of them. A step is timed from the end of one
to the end of the next; `run_seconds_per_step` is a whole run with everything around its steps: loading, tokenizing,
checkpoints, update norms and saving. CPU time leaves out what other programs took, and is the fairer figure where
something else is running.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PrinterCallback, TrainerCallback, get_cosine_schedule_with_warmup, set_seed
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from securetune.artifacts import RobustModules, SelectedModule, environment
from securetune.config import ModelSettings, TrainingSettings
from securetune.data.conversations import read_conversations
from securetune.models import load, map_modules
from securetune.training import train
from securetune.training.encoding import encode_conversations

BATCH_SIZE = 32
LEARNING_RATE = 5e-4
WARM_UP_STEPS_LEFT_OUT = 3


class Timing(NamedTuple):
    """One run of one variant."""

    step_seconds: list[float]
    step_cpu_seconds: list[float]
    run_seconds: float


class Clock:
    """Collects the time between ends of steps."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.started = time.perf_counter()

    def step(self) -> None:
        """Note the end of a step."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def timing(self) -> Timing:
        """Return the times, without the first steps, which warm up caches."""
        run_seconds = time.perf_counter() - self.started
        pairs = list(itertools.pairwise(self.ends[WARM_UP_STEPS_LEFT_OUT:]))
        wall, cpu = ([after[index] - before[index] for before, after in pairs] for index in (0, 1))
        return Timing(wall, cpu, run_seconds)


class _ClockCallback(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self._clock.step()


def bare_loop(model_name: str, steps: int) -> Timing:
    """AdamW, clipping and a cosine schedule around the model's own loss: the least that a training does."""
    clock = Clock()
    chat = load(model_name)
    rows = encode_conversations(chat.tokenizer, read_conversations("tiny-world"), 1024).dataset
    set_seed(0)
    batches = torch.utils.data.DataLoader(
        rows, BATCH_SIZE, shuffle=True, collate_fn=DataCollatorForLanguageModeling(chat.tokenizer.pad_token_id)
    )
    optimizer = torch.optim.AdamW(chat.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, steps)
    chat.model.train()
    for _, batch in zip(range(steps), batches, strict=False):
        chat.model(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(chat.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.step()
    return clock.timing()


def plain_trl(model_name: str, steps: int) -> Timing:
    """TRL's trainer as a user would write it, on conversations, with its own preparation."""
    from datasets import Dataset

    clock = Clock()
    chat = load(model_name)
    rows = [
        {"prompt": list(row["messages"][:-1]), "completion": [row["messages"][-1]]}
        for row in read_conversations("tiny-world")
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            bf16=False,
            activation_checkpointing=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
        )
        trainer = SFTTrainer(
            model=chat.model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=chat.tokenizer,
            callbacks=[_ClockCallback(clock)],
        )
        trainer.remove_callback(PrinterCallback)  # stdout is for the result
        trainer.train()
        chat.model.save_pretrained(folder)
    return clock.timing()


def ours(method: str) -> Callable[[str, int], Timing]:
    """Return a run of one of our methods, checkpoints and log included."""

    def run(model_name: str, steps: int) -> Timing:
        clock = Clock()
        warmup_steps = steps // 2 if method == "swat" else 0
        settings = TrainingSettings(
            method=method,
            max_steps=steps - warmup_steps,
            warmup_phase_steps=warmup_steps,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
        )
        folder = Path(tempfile.mkdtemp())
        shown = lambda what, done, total: clock.step() if done else None  # noqa: E731
        manifest = _upper_half(model_name)
        train(settings, ModelSettings(name=model_name), "tiny-world", folder / "out", manifest, shown)
        timing = clock.timing()
        shutil.rmtree(folder)
        return timing

    return run


def _upper_half(model_name: str) -> RobustModules:
    """Return a manifest with the modules of the upper half of the layers; its content does not matter for speed."""
    chat = load(model_name)
    modules = map_modules(chat.model)
    chosen = [module for module in modules if 2 * module.layer > max(module.layer for module in modules)]
    return RobustModules(
        model=chat.identity,
        prompt_set_hash="",
        selection="searched",
        settings={},
        modules=[
            SelectedModule(
                name=module.name,
                type=module.type,
                layer=module.layer,
                parameter_count=module.parameter_count,
                robustness_rank=rank,
            )
            for rank, module in enumerate(chosen)
        ],
        parameter_fraction=0.5,
        joint_accuracy=1.0,
        intact_accuracy=1.0,
    )


VARIANTS: dict[str, Callable[[str, int], Timing]] = {
    "bare loop": bare_loop,
    "plain TRL SFTTrainer": plain_trl,
    "securetune ift": ours("ift"),
    "securetune ml-lr": ours("ml-lr"),
    "securetune swat": ours("swat"),
}


def measure(model_name: str, steps: int, rounds: int) -> dict[str, Any]:
    """Run every variant in turn and return medians, in seconds and relative to the bare loop."""
    timings: dict[str, list[Timing]] = {name: [] for name in VARIANTS}
    for round_number in range(rounds):
        for name, run in VARIANTS.items():
            timings[name].append(run(model_name, steps))
            print(f"round {round_number + 1}: {name} done", file=sys.stderr)
    wall = {name: statistics.median(s for one in found for s in one.step_seconds) for name, found in timings.items()}
    cpu = {name: statistics.median(s for one in found for s in one.step_cpu_seconds) for name, found in timings.items()}
    return {
        "model": model_name,
        "steps": steps,
        "rounds": rounds,
        "rows_per_batch": BATCH_SIZE,
        "threads": torch.get_num_threads(),
        "variants": {
            name: {
                "median_step_seconds": wall[name],
                "relative_to_bare_loop": wall[name] / wall["bare loop"],
                "relative_to_trl": wall[name] / wall["plain TRL SFTTrainer"],
                "median_step_cpu_seconds": cpu[name],
                "cpu_relative_to_bare_loop": cpu[name] / cpu["bare loop"],
                "cpu_relative_to_trl": cpu[name] / cpu["plain TRL SFTTrainer"],
                "run_seconds_per_step": statistics.median(one.run_seconds for one in timings[name]) / steps,
            }
            for name in VARIANTS
        },
        "environment": environment(),
    }


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-world", help="embedded name or folder")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs a variant")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small matrices gain nothing from a second thread
    result = measure(arguments.model, arguments.steps, arguments.rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'':24}{'ms a step':>10}{'/ bare':>8}{'/ TRL':>8}{'CPU ms':>10}{'/ bare':>8}{'/ TRL':>8}{'whole run':>11}")
    for name, row in result["variants"].items():
        print(
            f"{name:24}{1000 * row['median_step_seconds']:10.1f}{row['relative_to_bare_loop']:8.2f}"
            f"{row['relative_to_trl']:8.2f}{1000 * row['median_step_cpu_seconds']:10.1f}"
            f"{row['cpu_relative_to_bare_loop']:8.2f}{row['cpu_relative_to_trl']:8.2f}"
            f"{1000 * row['run_seconds_per_step']:11.1f}"
        )


if __name__ == "__main__":
    main()
