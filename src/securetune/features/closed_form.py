"""Every module's sensitivity from one forward and one backward pass.

To first order, noise of size ε on one module's weights W moves a readout z of a prompt (the classifier's logit, or the
refusal margin) by a normal variable of standard deviation

    ε · rms(W) · ‖∂z/∂W‖_F,

and a given update ΔW moves it by ⟨∂z/∂W, ΔW⟩. A projection computes out_t = W·a_t at each token t. With g_t =
∂z/∂out_t, the gradient is ∂z/∂W = Σ_t g_t a_tᵀ; its squared norm is Σ_{t,u} (a_t·a_u)(g_t·g_u), the sum over the
elementwise product of two Gram matrices, and ⟨∂z/∂W, ΔW⟩ = Σ_t g_t·(ΔW a_t). So the inputs a and the output gradients
g, which one forward and backward pass gives for all modules and all prompts, are enough: no weight gradient is kept,
and the parameters need not require one. Each g is used up the moment the backward pass makes it, so the memory is that
of the weights and of one batch's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from securetune.data.prompts import Prompt
from securetune.features.hidden_states import TokenBatch, at_last_token, decoder_of, in_callers_order, make_batches
from securetune.features.module_gradients import Measure, ModuleGradients
from securetune.features.outer_products import OuterProductNorms
from securetune.features.perturbation import root_mean_square
from securetune.features.readout import Readout
from securetune.features.replay import final_norm_of, layer_output, layers_of, record_calls
from securetune.features.top_layer import last_tokens_only
from securetune.models import ChatModel, ProjectionModule, map_modules

_MeasureBatch = Callable[
    [PreTrainedModel, Sequence[ProjectionModule], TokenBatch, Readout, Measure], Float[Tensor, "module batch"]
]


def closed_form_shifts(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    readout: Readout,
    epsilon: float = 1.0,
    batch_size: int = 64,
    activation_checkpointing: bool = False,
) -> Float[Tensor, "module prompt"]:
    """Return each module's expected shift of a readout on each prompt under noise, to first order, in float64.

    Args:
        chat: The model.
        prompts: Requests.
        readout: What shifts: a classifier's logit or the refusal margin.
        epsilon: Relative size of the noise; the result is proportional to it.
        batch_size: Prompts a pass. Activations of a whole batch are held, as in training.
        activation_checkpointing: Hold the activations of one layer at a time, and the input of each; costs a second
            forward pass.

    Returns:
        Root of the expected squared shift, modules in the order of `map_modules`.

    Example:
        >>> shifts = closed_form_shifts(chat, probes.score_harmful, probe.classifier, epsilon=0.5)
        >>> root_mean_square_shift = shifts.square().mean(dim=1).sqrt()
    """
    norms = OuterProductNorms()
    run = _measure_batch_by_layer if activation_checkpointing else _measure_batch
    squares = _measured(chat, prompts, readout, batch_size, lambda _, __, a, g: norms.squared(a, g), run)
    sizes = [root_mean_square(module.weight_in(chat.model)) for module in map_modules(chat.model)]
    return epsilon * torch.tensor(sizes, dtype=torch.float64)[:, None] * squares.sqrt()


def directional_shifts(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    readout: Readout,
    update: Mapping[str, Float[Tensor, "*weights"]],
    size: float = 1.0,
    batch_size: int = 64,
) -> Float[Tensor, "module prompt"]:
    """Return how far each module's own part of an update moves a readout on each prompt, to first order, in float64.

    Args:
        chat: The model before the update.
        prompts: Requests.
        readout: What shifts.
        update: Module name → ΔW, shaped as `ProjectionModule.weight_in` gives W.
        size: Factor of the update; the result is proportional to it.
        batch_size: Prompts a pass.
    """

    @lru_cache(maxsize=3)  # experts take turns at their three projections; reading each anew would read all each time
    def update_of(name: str) -> Tensor:
        return update[name]

    def along_update(module: ProjectionModule, expert: int | None, inputs: Tensor, gradients: Tensor) -> Tensor:
        precision = torch.promote_types(inputs.dtype, torch.float32)
        change = update_of(module.name) if expert is None else update_of(module.name)[expert]
        moved = inputs.to(precision) @ change.flatten(0, -2).to(inputs.device, precision).mT
        return (moved * gradients.to(precision)).sum(dim=(1, 2), dtype=torch.float64)

    return size * _measured(chat, prompts, readout, batch_size, along_update)


def _measured(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    readout: Readout,
    batch_size: int,
    measure: Measure,
    measure_batch: _MeasureBatch | None = None,
) -> Float[Tensor, "module prompt"]:
    """Run all prompts forward and backward, and measure every module."""
    modules = map_modules(chat.model)
    batches = make_batches(chat.tokenizer, prompts, batch_size, chat.model.device)
    run = measure_batch or _measure_batch
    parts = [run(chat.model, modules, batch, readout, measure).T for batch in batches]
    return in_callers_order(parts, batches).T.double().cpu()


def _measure_batch(
    model: PreTrainedModel,
    modules: Sequence[ProjectionModule],
    batch: TokenBatch,
    readout: Readout,
    measure: Measure,
) -> Float[Tensor, "module batch"]:
    """Measure all modules in one graph."""
    decoder = decoder_of(model)
    with _graph_for(model, modules, batch, measure) as gradients:
        states = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        values = readout.logits(at_last_token(states, batch.last))
        # A prompt's value depends on its own row only, so the gradient of the sum holds each prompt's own gradient.
        torch.autograd.grad(values.sum(), gradients.starts)
    return gradients.stacked(modules)


def _measure_batch_by_layer(
    model: PreTrainedModel,
    modules: Sequence[ProjectionModule],
    batch: TokenBatch,
    readout: Readout,
    measure: Measure,
) -> Float[Tensor, "module batch"]:
    """Measure the modules layer by layer, from the top down, with a graph of one layer at a time.

    Raises:
        AttributeError: If the decoder's layers or its final norm have no known name.
    """
    decoder = decoder_of(model)
    layers, norm = layers_of(decoder), final_norm_of(decoder)
    with torch.no_grad(), last_tokens_only(model, modules, batch.last):
        calls = record_calls(decoder, layers, batch, keep_all_inputs=True)
    gradient: Tensor | None = None
    with _graph_for(model, modules, batch, measure) as gradients:
        for layer, call in zip(reversed(layers), reversed(calls), strict=True):
            states = call.pop("hidden_states").detach().requires_grad_(layer is not layers[0])
            output = layer_output(layer(states, **call))
            if layer is layers[-1]:
                output = readout.logits(norm(at_last_token(output, batch.last).unsqueeze(1)).squeeze(1)).sum()
            gradient = torch.autograd.grad(output, gradients.starts or states, gradient)[0]
    return gradients.stacked(modules)


@contextmanager
def _graph_for(
    model: PreTrainedModel, modules: Sequence[ProjectionModule], batch: TokenBatch, measure: Measure
) -> Iterator[ModuleGradients]:
    """Make a pass over a batch build the graph that measuring needs, and no more of it."""
    gradients = ModuleGradients(modules, measure)
    with (
        torch.enable_grad(),
        _weights_constant(model),
        gradients.watched(model, len(batch.last)),
        last_tokens_only(model, modules, batch.last),
    ):
        yield gradients


@contextmanager
def _weights_constant(model: nn.Module) -> Iterator[None]:
    """Let no weight require a gradient, so that nothing is kept for one."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
