"""How well the closed form predicts a sampled sweep, where noise is so small that the first order must hold.

The median of the root mean square of S draws is too small by a factor of about 1 - 1/(3S), so a perfect closed form
shows a median ratio of about 1.02 at 16 seeds and of 1.04 at 8. What disagreement there is beyond that is mostly
sampling error: one draw moves all prompts in a similar way, so a module's sampled shift is off by up to 1/√(2S), some
18 %, however many prompts there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from robustness_analysis.cases import Bench, Work
from robustness_analysis.methods import METHODS
from securetune.analysis import sweep_modules
from securetune.analysis.agreement import compare_shifts, root_mean_square_over_last
from securetune.artifacts import ClosedFormAgreement
from securetune.features import last_token_states

SEEDS = 16
SMALL_SHIFT = 0.01
"""Share of the typical logit by which the small noise moves it."""

SMALL_SHIFT_IN_ROUNDINGS = 64
"""In half precision the shift must stand out of the rounding of the states too."""


def compare_with_sampling(bench: Bench, methods: Sequence[str], prompt_count: int) -> dict[str, ClosedFormAgreement]:
    """Compare closed forms with one sweep over all modules, on a few of the prompts.

    Args:
        bench: The model and so on.
        methods: Names; those that are no closed form are passed over.
        prompt_count: Prompts that the sweep runs on, taken evenly.
    """
    names = [name for name in methods if name.startswith("closed-form")]
    if not names:
        return {}
    prompts = bench.prompts[:: max(1, len(bench.prompts) // prompt_count)][:prompt_count]
    shifts = {
        name: root_mean_square_over_last(_require(METHODS[name].prepare(bench)(Work([], [], prompts))))
        for name in names
    }
    intact = bench.readout.logits(last_token_states(bench.chat.model, bench.chat.tokenizer, prompts))
    share = max(SMALL_SHIFT, SMALL_SHIFT_IN_ROUNDINGS * torch.finfo(bench.chat.model.dtype).eps)
    epsilon = share * intact.abs().mean().item() / shifts[names[0]].median().item()
    found = sweep_modules(bench.chat, prompts, [bench.readout], [epsilon], range(SEEDS), bench.case.batch_size)
    sampled = root_mean_square_over_last(found.readouts[bench.readout.name].shifts()[0].flatten(1))
    return {name: compare_shifts(epsilon * shifts[name], sampled, epsilon, SEEDS) for name in names}


def _require(found: torch.Tensor | None) -> torch.Tensor:
    assert found is not None  # closed forms return their shifts
    return found
