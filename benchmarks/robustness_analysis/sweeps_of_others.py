"""The sweep as one would write it without us: with plain transformers, TransformerLens and nnsight.

All perturb the same modules with the same noise as our sweep, on the same prompts in batches of the same size, without
gradients, and read the same classifier. None runs the output matrix on more than one token a prompt. `naive`,
`transformer-lens` and `nnsight` run all layers for every perturbation; `nnsight, skipping` keeps the states below the
perturbed layer and skips what is below, as our sweep does. There is no such row for TransformerLens: its
`start_at_layer` runs the lower layers too, on an input that it discards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_analysis.cases import Bench, PaddedBatch, Run, Work, padded_batches
from securetune.features.perturbation import gaussian_noise, root_mean_square
from securetune.models import ProjectionModule

EPSILON = 0.5
"""Relative size of the noise of the sweeps that are timed."""

_States = Callable[[PaddedBatch, int, Tensor | None], Float[Tensor, "batch seq hidden"]]
"""Batch, perturbed layer and what is kept of the pass below it → states after the final norm."""

_Below = Callable[[PaddedBatch, int], Float[Tensor, "batch seq hidden"] | None]
"""Batch and layer → what to keep of the pass below the layer; nothing where every pass is a whole one."""


def naive_sweep(bench: Bench) -> Run:
    """With plain transformers: change the weight, run everything, read the logit, copy the weight back."""
    decoder: Any = bench.chat.model.get_decoder()

    def states(batch: PaddedBatch, layer: int, below: Tensor | None) -> Tensor:
        output: Tensor = decoder(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
        return output

    return _sweep(bench, lambda module: bench.chat.model.get_parameter(module.weight_name), states)


def transformer_lens_sweep(bench: Bench) -> Run:
    """With TransformerLens' bridge around the same model, keeping nothing but the final norm's output."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import transformers  # noqa: F401  # adds `boot_transformers`

    model: Any = bench.chat.model
    bridge: Any = TransformerBridge.boot_transformers(  # type: ignore[attr-defined, unused-ignore]
        bench.case.size,
        hf_model=model,
        tokenizer=copy.deepcopy(bench.chat.tokenizer),
        device=str(model.device),
        dtype=model.dtype,
    )

    def weight_of(module: ProjectionModule) -> Tensor:
        block = bridge.blocks[module.layer]
        place = {"Gate": "gate", "Up": "in", "Down": "out"}.get(module.type)
        part = getattr(block.attn, module.type.lower()) if place is None else getattr(block.mlp, place)
        weight: Tensor = part.weight
        return weight

    def states(batch: PaddedBatch, layer: int, below: Tensor | None) -> Tensor:
        name = "ln_final.hook_out"
        _, cache = bridge.run_with_cache(
            batch.ids, attention_mask=batch.mask, names_filter=name, return_type=None, logits_to_keep=1
        )
        output: Tensor = cache[name]
        return output

    return _sweep(bench, weight_of, states)


def nnsight_sweep(bench: Bench) -> Run:
    """With nnsight around the same model, stopped after the final norm."""
    wrapped = _wrap_with_nnsight(bench)

    def states(batch: PaddedBatch, layer: int, below: Tensor | None) -> Tensor:
        with wrapped.trace({"input_ids": batch.ids, "attention_mask": batch.mask}) as tracer:
            output: Tensor = wrapped.model.norm.output.save()
            tracer.stop()
        return output

    return _sweep(bench, lambda module: bench.chat.model.get_parameter(module.weight_name), states)


def nnsight_skipping_sweep(bench: Bench) -> Run:
    """The same, skipping the layers below the perturbed one."""
    wrapped = _wrap_with_nnsight(bench)

    def below(batch: PaddedBatch, layer: int) -> Tensor | None:
        if layer == 0:
            return None
        with wrapped.trace({"input_ids": batch.ids, "attention_mask": batch.mask}) as tracer:
            output: Tensor = wrapped.model.layers[layer - 1].output.save()
            tracer.stop()
        return output

    def states(batch: PaddedBatch, layer: int, kept: Tensor | None) -> Tensor:
        with wrapped.trace({"input_ids": batch.ids, "attention_mask": batch.mask}) as tracer:
            for index in range(layer):
                wrapped.model.layers[index].skip(kept)
            output: Tensor = wrapped.model.norm.output.save()
            tracer.stop()
        return output

    return _sweep(bench, lambda module: bench.chat.model.get_parameter(module.weight_name), states, below)


def _wrap_with_nnsight(bench: Bench) -> Any:
    from nnsight import TransformersModel

    return TransformersModel(bench.chat.model, tokenizer=bench.chat.tokenizer)


def _sweep(
    bench: Bench,
    weight_of: Callable[[ProjectionModule], Tensor],
    states: _States,
    below: _Below = lambda batch, layer: None,
) -> Run:
    """Perturb module after module; what `below` gives is made once a layer."""

    @torch.inference_mode()
    def run(work: Work) -> Tensor:
        batches = list(padded_batches(bench, work.prompts))
        found = torch.empty(len(work.modules), len(work.seeds), len(work.prompts), dtype=torch.float64)
        layer, kept = -1, []
        for row, module in enumerate(work.modules):
            if module.layer != layer:
                layer, kept = module.layer, [below(batch, module.layer) for batch in batches]
            for column, seed in enumerate(work.seeds):
                with _noise_on(weight_of(module), module.name, seed):
                    logits = [
                        bench.readout.logits(_last(states(batch, layer, start), batch))
                        for batch, start in zip(batches, kept, strict=True)
                    ]
                found[row, column] = torch.cat(logits).cpu()
        return found

    return run


@contextmanager
def _noise_on(weight: Tensor, name: str, seed: int) -> Iterator[None]:
    original = weight.detach().clone()
    noise = EPSILON * root_mean_square(weight) * gaussian_noise(weight, name, seed)
    weight.copy_(weight.float() + noise)
    try:
        yield
    finally:
        weight.copy_(original)


def _last(states: Float[Tensor, "batch seq hidden"], batch: PaddedBatch) -> Float[Tensor, "batch hidden"]:
    return states[torch.arange(len(batch.mask), device=states.device), batch.mask.sum(dim=1) - 1]
