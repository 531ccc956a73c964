"""Time and memory of the robustness analysis against what one would write instead, on the same prompts, in one run.

    python benchmarks/analysis.py [--sizes tiny-world small] [--prompts 24] [--seeds 3] [--json]
    python benchmarks/analysis.py --scaling                          # over layers, width and prompts

`docs/log.md` names the commands of the figures that it quotes. The methods, all for every module: the closed form,
plain and with activation checkpointing; our sweep; the sweep with plain transformers (`naive`), with TransformerLens
and with nnsight (see `robustness_analysis/sweeps_of_others.py`; `pip install -c requirements.lock -e '.[benchmarks]'`
installs the two); and, for its memory, a training step's forward and backward. One thread on a CPU, the same precision,
batches and noise for all; the methods take turns. The fields of a row:

- `seconds`: median; of the processor on a CPU, of the clock on a GPU. `forward_equivalents`: in plain forward passes
  over the same prompts. `naive_seconds_over_these`: how many times faster than the naive sweep.
- `peak_mib`: peak memory above that of the loaded model, in a process of its own.
- `spearman_vs_sampled`, `median_ratio`: of a closed form against 16 draws of small noise (see
  `robustness_analysis/agreement.py`).
- `max_difference_from_naive`: of a sweep's logits, whose typical size is `typical_logit`.
- `note`: why a figure is missing, or inferred from a part of the work.

The sizes `1b` and `7b` have random weights in bfloat16 and are measured by default where there is a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from robustness_analysis.agreement import compare_with_sampling
from robustness_analysis.cases import SIZES, Case, Shape, open_case
from robustness_analysis.memory import peak_mib
from robustness_analysis.methods import METHODS
from robustness_analysis.stopwatch import Timing, time_methods
from transformers.utils import logging

from securetune.artifacts import ClosedFormAgreement, environment

PROMPTS = 24
SCALING_BASE = {"layers": 8, "width": 256, "prompts": 32}
SCALING_STEPS = {"layers": (4, 16), "width": (128, 512), "prompts": (16, 64)}
SCALING_METHODS = ("closed-form", "sweep", "naive")


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        methods: Names.
        seeds: Noise draws a module.
        repeats: Rounds; the median counts.
        sweep_repeats: Rounds in which the sweeps take part.
        passes: About how many perturbations a sweep does in a round; the rest is inferred. None: all.
        sampled_prompts: Prompts on which closed forms are compared with sampling; 0: they are not.
        memory: Whether peaks are measured.
    """

    methods: Sequence[str]
    seeds: int = 3
    repeats: int = 3
    sweep_repeats: int = 1
    passes: int | None = 12
    sampled_prompts: int = 2
    memory: bool = True


def measure(case: Case, plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of one case."""
    bench = open_case(case)
    missing = [name for name in plan.methods if not _installed(name)]
    methods = [name for name in plan.methods if name not in missing]
    timings = time_methods(bench, methods, plan.seeds, plan.repeats, plan.sweep_repeats, plan.passes)
    agreement = compare_with_sampling(bench, methods, plan.sampled_prompts) if plan.sampled_prompts else {}
    prompts = len(bench.prompts)
    del bench  # on a GPU the processes that measure memory need the room
    if case.device == "cuda":
        torch.cuda.empty_cache()
    peaks = {name: peak_mib(case, name) for name in methods} if plan.memory else {}
    about = {"size": case.size, "prompts": prompts, "forward_seconds": timings.forward_seconds}
    naive = timings.methods.get("naive", Timing(None))
    return [
        {
            **about,
            "method": name,
            "seeds": plan.seeds if METHODS[name].sweeps else None,
            **_speed(timings.methods[name], naive, timings.forward_seconds),
            "peak_mib": peaks.get(name),
            **_agreement(agreement.get(name)),
            **_difference(timings.methods[name], naive, METHODS[name].sweeps),
            "note": timings.methods[name].note,
        }
        for name in methods
    ]


def _speed(timing: Timing, naive: Timing, forward_seconds: float) -> dict[str, float | None]:
    seconds = timing.seconds
    return {
        "seconds": seconds,
        "forward_equivalents": None if seconds is None else seconds / forward_seconds,
        "naive_seconds_over_these": None if seconds is None or naive.seconds is None else naive.seconds / seconds,
    }


def _agreement(found: ClosedFormAgreement | None) -> dict[str, float | None]:
    return {
        "spearman_vs_sampled": found.spearman if found else None,
        "median_ratio": found.median_ratio if found else None,
    }


def _difference(timing: Timing, naive: Timing, sweeps: bool) -> dict[str, float | None]:
    if not sweeps or timing.found is None or naive.found is None:
        return {"max_difference_from_naive": None, "typical_logit": None}
    return {
        "max_difference_from_naive": (timing.found - naive.found).abs().max().item(),
        "typical_logit": naive.found.abs().median().item(),
    }


def _installed(name: str) -> bool:
    package = METHODS[name].package
    return package is None or importlib.util.find_spec(package) is not None


def scaling_cases(device: str) -> list[Case]:
    """Vary layers, width and prompts, one at a time."""
    settings = [SCALING_BASE]
    settings += [{**SCALING_BASE, what: value} for what, values in SCALING_STEPS.items() for value in values]
    return [
        Case(
            f"{setting['layers']} layers, width {setting['width']}",
            Shape(setting["layers"], setting["width"], 8 * setting["width"] // 3, 8, 8),
            setting["prompts"],
            device=device,
        )
        for setting in settings
    ]


def main() -> None:
    """Read the arguments, measure, print."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.scaling and (arguments.sizes or arguments.prompts is not None):
        parser.error("--scaling has sizes and prompts of its own; leave out --sizes and --prompts")
    torch.set_num_threads(1)  # the same for all, and the processor's seconds are those of one core
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() and arguments.device != "cpu" else "cpu"
    plan = _plan(arguments)
    rows = []
    for case in _cases(arguments, device):
        print(f"measuring {case.size}, {case.prompts} prompts", file=sys.stderr)
        rows += measure(case, plan)
    result = {"rows": rows, "notes": _notes(plan), "environment": describe_environment(device)}
    print(json.dumps(result, indent=2) if arguments.json else _table(result))


def _cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    if arguments.scaling:
        return scaling_cases(device)
    sizes = arguments.sizes or [size for size in SIZES if device == "cuda" or size in ("tiny-world", "small")]
    return [Case(size, SIZES[size], arguments.prompts or PROMPTS, device=device) for size in sizes]


def _plan(arguments: argparse.Namespace) -> Plan:
    return Plan(
        arguments.methods or (SCALING_METHODS if arguments.scaling else list(METHODS)),
        arguments.seeds,
        arguments.repeats,
        min(arguments.sweep_repeats, arguments.repeats),
        arguments.passes or None,
        0 if arguments.scaling else arguments.sampled_prompts,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="models; default: those that the device can hold")
    parser.add_argument("--prompts", type=int, help=f"prompts, {PROMPTS} by default; tiny world has 64 at most")
    parser.add_argument("--seeds", type=int, default=3, help="noise draws a module")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median counts")
    parser.add_argument("--sweep-repeats", type=int, default=1, help="rounds in which the sweeps take part")
    parser.add_argument("--passes", type=int, default=12, help="perturbations a sweep really does; 0: all of them")
    parser.add_argument("--sampled-prompts", type=int, default=2, help="prompts of the sampling that checks")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all that are installed")
    parser.add_argument("--scaling", action="store_true", help="vary layers, width and prompts instead of --sizes")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _notes(plan: Plan) -> list[str]:
    missing = ", ".join(name for name in plan.methods if not _installed(name))
    return [f"{missing}: not installed; pip install -c requirements.lock -e '.[benchmarks]'"] if missing else []


def describe_environment(device: str) -> dict[str, str]:
    """Return versions and hardware, with the kind of processor and the number of threads."""
    found = {**environment(), "device": device, "cpu": _cpu_name(), "threads": str(torch.get_num_threads())}
    for name in ("transformer-lens", "nnsight"):
        found[name] = importlib.metadata.version(name) if _installed(name) else "not installed"
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


_COLUMNS = {
    "size": "{:<22}",
    "method": "{:<26}",
    "prompts": "{:>7}",
    "seconds": "{:>9.3f}",
    "forward_equivalents": "{:>9.2f}",
    "naive_seconds_over_these": "{:>9.2f}",
    "peak_mib": "{:>9.1f}",
    "spearman_vs_sampled": "{:>9.3f}",
    "median_ratio": "{:>9.3f}",
    "max_difference_from_naive": "{:>9.1e}",
}
_TITLES = ("size", "method", "prompts", "seconds", "forwards", "speed-up", "MiB", "Spearman", "ratio", "max. diff.")


def _table(result: dict[str, Any]) -> str:
    widths = {key: int("".join(filter(str.isdigit, form.partition(".")[0]))) for key, form in _COLUMNS.items()}
    title = " ".join(
        f"{name:<{width}}" if key in ("size", "method") else f"{name:>{width}}"
        for (key, width), name in zip(widths.items(), _TITLES, strict=True)
    )
    lines = [title]
    for row in result["rows"]:
        lines.append(
            " ".join(" " * widths[key] if row[key] is None else form.format(row[key]) for key, form in _COLUMNS.items())
        )
    remarks = {f"{row['size']}, {row['method']}: {row['note']}" for row in result["rows"] if row["note"]}
    return "\n".join([*lines, *sorted(remarks), *result["notes"], f"On {result['environment']['cpu']}, 1 thread."])


if __name__ == "__main__":
    main()
