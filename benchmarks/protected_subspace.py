"""What `protected-subspace` costs: a step and memory beside plain TRL, and gathering beside forward passes, in one run.

    python benchmarks/protected_subspace.py [--sizes tiny-world small] [--steps 24] [--rounds 3] [--energy 0.9] [--json]

Each run has a process of its own, and the variants take turns, as in `training_overhead.py`. Two kinds of rows:

- a step, for all parameters and LoRA on all projections: `time_ratio` is the mean time of a step over that of TRL's
  `SFTTrainer` with the same parameters in the same round, median over rounds, with the extremes; `memory_ratio` is peak
  memory over TRL's. On a CPU it is processor time, which leaves out what other programs take. `own_share` is the time
  that the method itself takes over that of a step, which varies less than ratios between runs; `rank_share` the share
  of all directions that is protected, or pulled. `+pull` is the method with a `tail_pull` of 0.3, which acts on more;
  `+pull/10` pulls at every tenth step alone.
- gathering from 256 requests with the model's own answers: `gathering_ratio` is the time of the pass that sums up
  second moments, and of their decomposition, over one forward pass over the same rows below the head; `answers_ratio`
  the time of generating those answers, which comes before and which `max_new_tokens: 0` leaves out.

Aims: steps at most 1.10 (all parameters) and 1.03 (LoRA) times plain TRL's, gathering at most 2 forward passes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from training_overhead import SIZES, STEPS_LEFT_OUT, TRL, Run, Size, random_llama, rows_of, shared_arguments, train
from trl import SFTConfig, SFTTrainer

from securetune import SecureSFTConfig, SecureSFTTrainer
from securetune.artifacts import environment
from securetune.config import ProbeSettings
from securetune.data.prompts import Prompt, load_probes
from securetune.defenses.own_answers import own_answers
from securetune.defenses.protected_subspace.input_moments import SecondMoment, gather_inputs
from securetune.models import load, map_modules

METHOD = "protected-subspace"
PULLED = f"{METHOD}+pull"
PULLED_AT_TIMES = f"{METHOD}+pull/10"
PULLS = {METHOD: {}, PULLED: {"tail_pull": 0.3}, PULLED_AT_TIMES: {"tail_pull": 0.3, "pull_every": 10}}
"""Options of each variant, besides the energy."""

VARIANTS = [(variant, tune) for tune in ("full", "lora") for variant in (TRL, *PULLS)]
LORA = LoraConfig(
    r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
)
PROMPTS = 256
BATCH_SIZE = 32


class Gathering(NamedTuple):
    """Seconds of each part of gathering, and the tokens that were gathered."""

    forward: float
    answers: float
    moments: float
    decomposition: float
    tokens: int


def prompts_of_tiny_world() -> list[Prompt]:
    """Return its harmful probe prompts, which the random models' tokenizer knows too."""
    probes = load_probes(ProbeSettings(max_prompts=PROMPTS), "tiny-world")
    return [*probes.fit_harmful, *probes.score_harmful][:PROMPTS]


class NotedTrainer(SecureSFTTrainer):
    """Writes down which share of the directions is protected, and how long the method itself takes."""

    notes: Path

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        _, seconds = _timed(lambda: self.defense.after_step(self.network, optimizer))
        self.own_seconds = [*getattr(self, "own_seconds", []), seconds]

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train as usual."""
        output = super().train(*arguments, **named)
        found = self.defense.evidence()["protected"].values()
        acted_on = sum(each["directions"] + each["pulled_directions"] for each in found)
        share = acted_on / sum(each["inputs"] for each in found)
        noted = {"rank_share": share, "own_seconds": statistics.fmean(self.own_seconds[STEPS_LEFT_OUT:])}
        self.notes.write_text(json.dumps(noted))
        return output


def make_trainer(variant: str, model: Any, folder: str, size: Size, steps: int, **arguments: Any) -> SFTTrainer:
    """Return TRL's trainer or ours, as `method tune energy notes` says."""
    method, tune, energy, notes = variant.split(maxsplit=3)
    shared = shared_arguments(size, steps)
    adapter = LORA if tune == "lora" else None
    if method == TRL:
        return SFTTrainer(model, SFTConfig(folder, **shared), peft_config=adapter, **arguments)
    requests = Path(folder) / "requests.txt"
    requests.write_text("\n".join(prompt.text for prompt in prompts_of_tiny_world()[:BATCH_SIZE]))
    options = {"prompts": str(requests), "energy": float(energy), "max_new_tokens": 8}
    options |= PULLS[method]
    config = SecureSFTConfig(folder, method=METHOD, method_options=options, **shared)
    trainer = NotedTrainer(model, config, peft_config=adapter, **arguments)
    trainer.notes = Path(notes)
    return trainer


def gather(size: Size) -> Gathering:
    """Gather once, part by part; to be called in a process of its own."""
    torch.set_num_threads(1)
    chat, on_gpu = load("tiny-world"), torch.cuda.is_available()
    model = chat.model if size.shape is None else random_llama(*size.shape, len(chat.tokenizer), on_gpu)
    model.eval()
    messages = [prompt.messages for prompt in prompts_of_tiny_world()]
    rows, answers = _timed(lambda: own_answers(model, chat.tokenizer, messages, 16, BATCH_SIZE))
    holders = {module.path: module.holder_in(model) for module in map_modules(model)}
    gather_inputs(model, {}, rows[:BATCH_SIZE], BATCH_SIZE, SecondMoment)  # warms up
    _, forward = _timed(lambda: gather_inputs(model, {}, rows, BATCH_SIZE, SecondMoment))
    found, moments = _timed(lambda: gather_inputs(model, holders, rows, BATCH_SIZE, SecondMoment))
    distinct = {id(each): each for each in found.values()}
    _, decomposition = _timed(lambda: [each.spectrum() for each in distinct.values()])
    return Gathering(forward, answers, moments, decomposition, sum(map(len, rows)))


def _timed(work: Any) -> tuple[Any, float]:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = clock()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, clock() - begin


def in_own_process(function: Any, *arguments: Any) -> Any:
    """Call a function in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure_steps(name: str, steps: int, rounds: int, energy: float) -> list[dict[str, Any]]:
    """Run all variants in turn and return the rows of one size."""
    runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
    noted: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes.json"
        for number in range(rounds):
            for variant, tune in VARIANTS:
                named = f"{variant} {tune} {energy} {notes}"
                runs[variant, tune].append(in_own_process(train, named, SIZES[name], steps, make_trainer))
                if variant != TRL:
                    noted[variant, tune].append(json.loads(notes.read_text()))
                print(f"{name}: round {number + 1}, {variant} {tune} done", file=sys.stderr)
    rows = []
    for variant, tune in VARIANTS:
        for row in rows_of(name, variant, runs[variant, tune], runs[TRL, tune], statistics.fmean):
            notes_of = noted.get((variant, tune), [{"own_seconds": 0.0, "rank_share": 0.0}])
            own, share = statistics.median(each["own_seconds"] for each in notes_of), notes_of[0]["rank_share"]
            rows.append({**row, "tune": tune, "own_share": own / row["step_seconds"], "rank_share": share})
    return rows


def measure_gathering(name: str, rounds: int) -> dict[str, Any]:
    """Gather some times and return the row of one size."""
    found = [in_own_process(gather, SIZES[name]) for _ in range(rounds)]
    ratios = [(each.moments + each.decomposition) / each.forward for each in found]
    return {
        "size": name,
        "tokens": found[0].tokens,
        "forward_seconds": statistics.median(each.forward for each in found),
        "gathering_ratio": statistics.median(ratios),
        "gathering_ratio_low": min(ratios),
        "gathering_ratio_high": max(ratios),
        "moments_ratio": statistics.median(each.moments / each.forward for each in found),
        "decomposition_ratio": statistics.median(each.decomposition / each.forward for each in found),
        "answers_ratio": statistics.median(each.answers / each.forward for each in found),
    }


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: those that the machine should hold")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps")
    parser.add_argument("--rounds", type=int, default=3, help="runs a variant")
    parser.add_argument("--energy", type=float, default=0.9, help="share of the inputs' energy to protect")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    sizes = arguments.sizes or (list(SIZES) if torch.cuda.is_available() else ["tiny-world", "small"])
    steps = [row for name in sizes for row in measure_steps(name, arguments.steps, arguments.rounds, arguments.energy)]
    gathering = [measure_gathering(name, arguments.rounds) for name in sizes]
    if arguments.json:
        print(json.dumps({"rows": steps, "gathering": gathering, "environment": environment()}, indent=2))
        return
    heads = f"{'ms a step':>10}{'/ TRL':>8}{'low':>7}{'high':>7}{'own':>7}{'memory / TRL':>14}{'rank':>8}"
    print(f"{'size':12}{'method':24}{'tune':6}{heads}")
    for row in steps:
        print(
            f"{row['size']:12}{row['method']:24}{row['tune']:6}{1000 * row['step_seconds']:10.1f}"
            f"{row['time_ratio']:8.3f}{row['time_ratio_low']:7.3f}{row['time_ratio_high']:7.3f}{row['own_share']:7.3f}"
            f"{row['memory_ratio']:14.3f}{row['rank_share']:8.2f}"
        )
    print(f"\n{'size':12}{'tokens':>8}{'forward s':>11}{'gathering':>11}{'moments':>9}{'decomp.':>9}{'answers':>9}")
    for row in gathering:
        print(
            f"{row['size']:12}{row['tokens']:8,}{row['forward_seconds']:11.2f}{row['gathering_ratio']:11.2f}"
            f"{row['moments_ratio']:9.2f}{row['decomposition_ratio']:9.2f}{row['answers_ratio']:9.2f}"
        )


if __name__ == "__main__":
    main()
