"""Time the closed form against the sampled sweep, and measure how well it predicts it, for rising numbers of seeds.

    python benchmarks/closed_form.py [--model tiny-world] [--seeds 64] [--prompts 64] [--epsilon 1.0] [--json]

Three noise sizes: a small one, where the first order must hold, so that all disagreement is sampling error and vanishes
as seeds are added; the given one; and twice it. The median of the sampled shift of S seeds is too small by a factor of
about 1 - 1/(3S), so a perfect closed form shows a median ratio of 1.04 at 8 seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from securetune.analysis import closed_form_shifts, sweep_modules
from securetune.analysis.agreement import compare_shifts, root_mean_square_over_last
from securetune.artifacts import environment
from securetune.config import ProbeSettings
from securetune.data.prompts import Prompt, load_probes
from securetune.features import SecurityProbe, fit_probe
from securetune.models import ChatModel, load

SMALL_SHARE = 0.01
"""Share of the typical logit by which the small noise moves it."""


class Times(NamedTuple):
    """Wall and CPU seconds of one piece of work; CPU leaves out what other programs took."""

    wall_seconds: float
    cpu_seconds: float


def measure(chat: ChatModel, prompts: list[Prompt], probe: SecurityProbe, epsilon: float, seeds: int) -> dict[str, Any]:
    """Compare at the three noise sizes.

    Args:
        chat: The model.
        prompts: Harmful requests.
        probe: The fitted classifier.
        epsilon: Relative noise size.
        seeds: Most noise draws a module.
    """
    closed_form_shifts(chat, prompts, probe.classifier)  # warms up caches
    start = _now()
    slopes = closed_form_shifts(chat, prompts, probe.classifier)
    closed_form = _since(start)
    expected = root_mean_square_over_last(slopes)
    small = SMALL_SHARE * probe.harmful_logits.abs().mean().item() / expected.median().item()
    start = _now()
    sizes = [small, epsilon, 2 * epsilon]
    found = sweep_modules(chat, prompts, [probe.classifier], sizes, list(range(seeds)))
    shifts = found.readouts[probe.classifier.name].shifts()
    sweep = _since(start)
    per_seed = Times(*(seconds / (3 * seeds) for seconds in sweep))
    return {
        "closed_form": closed_form._asdict(),
        "sweep_per_seed": per_seed._asdict(),
        "seeds_in_the_time_of_one_closed_form": closed_form.cpu_seconds / per_seed.cpu_seconds,
        "eight_seeds_over_closed_form": 8 * per_seed.cpu_seconds / closed_form.cpu_seconds,
        "agreement": [
            row for place, size in enumerate(sizes) for row in _agreement_by_seeds(size * expected, shifts[place], size)
        ],
    }


def _agreement_by_seeds(
    expected: Float[Tensor, " module"], shifts: Float[Tensor, "module seed prompt"], epsilon: float
) -> list[dict[str, float]]:
    """Compare with the first 1, 2, 4, … seeds of a sweep."""
    counts = [2**power for power in range(shifts.shape[1].bit_length())]
    rows = []
    for count in counts:
        sampled = root_mean_square_over_last(shifts[:, :count].flatten(1))
        rows.append(compare_shifts(expected, sampled, epsilon, count).model_dump())
    return rows


def _now() -> Times:
    return Times(time.perf_counter(), time.process_time())


def _since(start: Times) -> Times:
    return Times(time.perf_counter() - start.wall_seconds, time.process_time() - start.cpu_seconds)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-world", help="embedded name or folder")
    parser.add_argument("--harmful", help="file of harmful requests, if the model has no built-in ones")
    parser.add_argument("--harmless", help="file of harmless requests")
    parser.add_argument("--seeds", type=int, default=64, help="most noise draws a module")
    parser.add_argument("--prompts", type=int, default=64, help="prompts a class and split")
    parser.add_argument("--epsilon", type=float, default=1.0, help="relative noise size")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small matrices gain nothing from a second thread
    settings = ProbeSettings(harmful=arguments.harmful, harmless=arguments.harmless, max_prompts=arguments.prompts)
    probes = load_probes(settings, arguments.model)
    chat = load(arguments.model)
    probe = fit_probe(chat, probes, batch_size=64)
    result = measure(chat, probes.score_harmful, probe, arguments.epsilon, arguments.seeds)
    result = {"model": chat.identity.model_dump(), "classifier": probe.figures, **result, "environment": environment()}
    print(json.dumps(result, indent=2) if arguments.json else _table(result))


def _table(result: dict[str, Any]) -> str:
    closed_form, per_seed = result["closed_form"], result["sweep_per_seed"]
    lines = [
        f"closed form, all modules:  {closed_form['wall_seconds']:8.3f} s ({closed_form['cpu_seconds']:.3f} s CPU)",
        f"sweep, a seed:             {per_seed['wall_seconds']:8.3f} s ({per_seed['cpu_seconds']:.3f} s CPU)",
        f"sweep of 8 seeds / closed form: {result['eight_seeds_over_closed_form']:.0f} times the CPU time",
        f"{'epsilon':>10}{'seeds':>7}{'Spearman':>10}{'median ratio':>14}",
    ]
    lines += [
        f"{row['epsilon']:10.4f}{row['noise_seeds']:7d}{row['spearman']:10.3f}{row['median_ratio']:14.3f}"
        for row in result["agreement"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
