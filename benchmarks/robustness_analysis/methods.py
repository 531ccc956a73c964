"""What is compared: our ways, those of others, and two scales (a plain forward pass, a training step)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from robustness_analysis.cases import Bench, Run, Work, padded_batches
from robustness_analysis.sweeps_of_others import (
    EPSILON,
    naive_sweep,
    nnsight_skipping_sweep,
    nnsight_sweep,
    transformer_lens_sweep,
)
from securetune.analysis import closed_form_shifts, sweep_modules
from securetune.features.hidden_states import final_states, make_batches


class Method(NamedTuple):
    """One way to do the analysis.

    Attributes:
        prepare: Wraps the model and so on, which is not timed. May change the model of its bench.
        sweeps: Whether it perturbs modules one by one.
        package: What it imports that this project does not depend on. Such a method gets a copy of the model.
    """

    prepare: Callable[[Bench], Run]
    sweeps: bool
    package: str | None = None


def forward_pass(bench: Bench) -> Run:
    """One plain pass over all prompts: the unit of `forward_equivalents`.

    Tokenizing, which the closed form's time includes, and the output matrix, which no method needs, are left out.
    """
    batches = make_batches(bench.chat.tokenizer, bench.prompts, bench.case.batch_size, bench.chat.model.device)

    def run(_: Work) -> None:
        bench.readout.logits(final_states(bench.chat.model, batches))

    return run


def closed_form(bench: Bench, activation_checkpointing: bool = False) -> Run:
    """All modules' shifts from one forward and backward pass."""

    def run(work: Work) -> Tensor:
        return closed_form_shifts(
            bench.chat,
            work.prompts,
            bench.readout,
            batch_size=bench.case.batch_size,
            activation_checkpointing=activation_checkpointing,
        )

    return run


def checkpointed_closed_form(bench: Bench) -> Run:
    """The same, with the activations of one layer at a time."""
    return closed_form(bench, activation_checkpointing=True)


def training_step(bench: Bench) -> Run:
    """Forward and backward of the mean loss with gradients of all weights, without an optimizer."""
    model: Any = bench.chat.model

    def run(work: Work) -> None:
        for ids, mask in padded_batches(bench, work.prompts):
            model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def sweep(bench: Bench) -> Run:
    """Our sweep: layers below the perturbed one do not run again."""

    def run(work: Work) -> Tensor:
        found = sweep_modules(
            bench.chat,
            work.prompts,
            [bench.readout],
            [EPSILON],
            work.seeds,
            bench.case.batch_size,
            modules=work.modules,
        )
        return found.readouts[bench.readout.name].perturbed[0]

    return run


METHODS = {
    "closed-form": Method(closed_form, sweeps=False),
    "closed-form, checkpointed": Method(checkpointed_closed_form, sweeps=False),
    "training step": Method(training_step, sweeps=False),
    "sweep": Method(sweep, sweeps=True),
    "naive": Method(naive_sweep, sweeps=True),
    "transformer-lens": Method(transformer_lens_sweep, sweeps=True, package="transformer_lens"),
    "nnsight": Method(nnsight_sweep, sweeps=True, package="nnsight"),
    "nnsight, skipping": Method(nnsight_skipping_sweep, sweeps=True, package="nnsight"),
}
"""In the order of the rows."""
