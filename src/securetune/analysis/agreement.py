"""How well the closed form predicts what sampling finds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from securetune.analysis.calibration import evenly_taken
from securetune.analysis.module_pass import Execution
from securetune.analysis.sweep import sweep_modules
from securetune.artifacts import ClosedFormAgreement
from securetune.config import AnalysisSettings
from securetune.data.prompts import Prompt
from securetune.errors import RunError
from securetune.features.closed_form import closed_form_shifts
from securetune.features.hidden_states import last_token_states
from securetune.features.readout import Readout
from securetune.models import ChatModel

_SMALL_SHIFT = 0.01
"""Share of the typical logit by which the small noise moves it: there the second order is about 1 % of the first, and
float32 rounding, some 1e-6 of the logit, is far below even the least sensitive module's shift."""

_SMALL_SHIFT_IN_ROUNDINGS = 64
"""In half precision the shift must stand out of the rounding of the states too, so it is at least this many units."""

_SMALL_NOISE_PROMPTS = 8
_SMALL_NOISE_SEEDS = 16
"""One draw moves all prompts in a similar way, so a module's shift is as precise as its seeds are many: with S of them
its relative error is about 1/√(2S), some 18 % here. More prompts would hardly help."""


def root_mean_square_over_last(values: Float[Tensor, "*rows column"]) -> Float[Tensor, "*rows"]:
    """Return the root mean square over the last axis."""
    return values.square().mean(dim=-1).sqrt()


def compare_shifts(
    closed_form: Float[Tensor, " module"], sampled: Float[Tensor, " module"], epsilon: float, noise_seeds: int
) -> ClosedFormAgreement:
    """Compare the two scores over modules.

    Raises:
        RunError: If one of them is the same for all modules, so that there is no order to compare.
    """
    for name, shifts in {"closed-form": closed_form, "sampled": sampled}.items():
        if shifts.min() == shifts.max():
            raise RunError(
                f"the {name} logit shift is {shifts.min().item():g} for every module: the classifier's logit does not "
                "depend on the weights. Is the model's last layer or final norm untrained?"
            )
    return ClosedFormAgreement(
        spearman=float(stats.spearmanr(closed_form.numpy(), sampled.numpy()).statistic),
        median_ratio=(closed_form / sampled).median().item(),
        epsilon=epsilon,
        noise_seeds=noise_seeds,
    )


def compare_at_small_noise(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    readout: Readout,
    settings: AnalysisSettings,
    execution: Execution | None = None,
) -> ClosedFormAgreement:
    """Compare closed form and sampling where the first order must hold: a check of the formula itself.

    Args:
        chat: The model.
        prompts: Harmful requests; 8 of them are used.
        readout: What shifts.
        settings: For seeds (at least 16 are taken) and batch size.
        execution: Progress, and where finished modules are kept.

    Raises:
        RunError: If the readout does not depend on most modules.
    """
    precision = torch.finfo(chat.model.dtype).eps
    share = max(_SMALL_SHIFT, _SMALL_SHIFT_IN_ROUNDINGS * precision)
    sample = evenly_taken(prompts, _SMALL_NOISE_PROMPTS)
    slopes = closed_form_shifts(chat, sample, readout, 1.0, settings.batch_size)
    intact = readout.logits(last_token_states(chat.model, chat.tokenizer, sample, settings.batch_size))
    epsilon = _epsilon_for_shift(slopes, intact, share)
    seeds = list(range(settings.seed, settings.seed + max(_SMALL_NOISE_SEEDS, settings.noise_seeds)))
    what = "checking the closed form"
    found = sweep_modules(chat, sample, [readout], [epsilon], seeds, settings.batch_size, what, execution=execution)
    sampled = root_mean_square_over_last(found.readouts[readout.name].shifts()[0].flatten(1))
    return compare_shifts(root_mean_square_over_last(epsilon * slopes), sampled, epsilon, len(seeds))


def _epsilon_for_shift(slopes: Float[Tensor, "module prompt"], values: Float[Tensor, " prompt"], share: float) -> float:
    """Return the noise size at which the median module's expected shift is a given share of the typical value."""
    median = root_mean_square_over_last(slopes).median().item()
    if median == 0.0:
        raise RunError("the classifier's logit does not depend on most modules. Is the model's final norm untrained?")
    return share * values.abs().mean().item() / median
