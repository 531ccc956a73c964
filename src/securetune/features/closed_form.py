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

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from securetune.data.prompts import Prompt
from securetune.features.hidden_states import TokenBatch, at_last_token, decoder_of, in_callers_order, make_batches
from securetune.features.perturbation import linear_map_of, root_mean_square
from securetune.features.readout import Readout
from securetune.features.replay import layer_output, record_calls
from securetune.features.top_layer import last_tokens_only
from securetune.models import ChatModel, ProjectionModule, map_modules

_Measure = Callable[[ProjectionModule, Tensor, Tensor], Tensor]
"""Module, its input and its output's gradient, both (batch, seq, …) → one number a prompt."""

_MeasureBatch = Callable[
    [PreTrainedModel, Sequence[ProjectionModule], TokenBatch, Readout, _Measure], Float[Tensor, "module batch"]
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
    grams = _InputGrams()
    measure = _measure_batch_by_layer if activation_checkpointing else _measure_batch
    norms = _measured(chat, prompts, readout, batch_size, lambda _, a, g: grams.outer_product_norm(a, g), measure)
    sizes = [root_mean_square(chat.model.get_parameter(module.weight_name)) for module in map_modules(chat.model)]
    return epsilon * torch.tensor(sizes, dtype=torch.float64)[:, None] * norms


def directional_shifts(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    readout: Readout,
    update: Mapping[str, Float[Tensor, "out in"]],
    size: float = 1.0,
    batch_size: int = 64,
) -> Float[Tensor, "module prompt"]:
    """Return how far each module's own part of an update moves a readout on each prompt, to first order, in float64.

    Args:
        chat: The model before the update.
        prompts: Requests.
        readout: What shifts.
        update: Module name → ΔW.
        size: Factor of the update; the result is proportional to it.
        batch_size: Prompts a pass.
    """

    def along_update(module: ProjectionModule, inputs: Tensor, gradients: Tensor) -> Tensor:
        precision = torch.promote_types(inputs.dtype, torch.float32)
        moved = inputs.to(precision) @ update[module.name].to(inputs.device, precision).mT
        return (moved * gradients.to(precision)).sum(dim=(1, 2), dtype=torch.float64)

    return size * _measured(chat, prompts, readout, batch_size, along_update)


def _measured(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    readout: Readout,
    batch_size: int,
    measure: _Measure,
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
    measure: _Measure,
) -> Float[Tensor, "module batch"]:
    """Measure all modules in one graph."""
    decoder = decoder_of(model)
    found: dict[str, Tensor] = {}
    with _graph_for(model, modules, batch, measure, found) as starts:
        states = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        values = readout.logits(at_last_token(states, batch.last))
        # A prompt's value depends on its own row only, so the gradient of the sum holds each prompt's own gradient.
        torch.autograd.grad(values.sum(), starts)
    return torch.stack([found[module.name] for module in modules])


def _measure_batch_by_layer(
    model: PreTrainedModel,
    modules: Sequence[ProjectionModule],
    batch: TokenBatch,
    readout: Readout,
    measure: _Measure,
) -> Float[Tensor, "module batch"]:
    """Measure the modules layer by layer, from the top down, with a graph of one layer at a time.

    Raises:
        AttributeError: If the decoder has no `layers` or no `norm`.
    """
    decoder = decoder_of(model)
    layers: nn.ModuleList = decoder.layers  # type: ignore[assignment]
    norm: nn.Module = decoder.norm  # type: ignore[assignment]
    found: dict[str, Tensor] = {}
    with torch.no_grad(), last_tokens_only(model, modules, batch.last):
        calls = record_calls(decoder, layers, batch, keep_all_inputs=True)
    gradient: Tensor | None = None
    with _graph_for(model, modules, batch, measure, found) as starts:
        for layer, call in zip(reversed(layers), reversed(calls), strict=True):
            states = call.pop("hidden_states").detach().requires_grad_(layer is not layers[0])
            output = layer_output(layer(states, **call))
            if layer is layers[-1]:
                output = readout.logits(norm(at_last_token(output, batch.last).unsqueeze(1)).squeeze(1)).sum()
            gradient = torch.autograd.grad(output, starts or states, gradient)[0]
    return torch.stack([found[module.name] for module in modules])


@contextmanager
def _graph_for(
    model: PreTrainedModel,
    modules: Sequence[ProjectionModule],
    batch: TokenBatch,
    measure: _Measure,
    found: dict[str, Tensor],
) -> Iterator[list[Tensor]]:
    """Make a pass over a batch build the graph that measuring needs, and no more of it.

    Gives the list that will hold where the graph starts: at the first outputs of projections, which nothing
    differentiable precedes.
    """
    with (
        torch.enable_grad(),
        _weights_constant(model),
        _watch(model, modules, measure, found) as starts,
        last_tokens_only(model, modules, batch.last),
    ):
        yield starts


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


@contextmanager
def _watch(
    model: PreTrainedModel, modules: Sequence[ProjectionModule], measure: _Measure, found: dict[str, Tensor]
) -> Iterator[list[Tensor]]:
    """Measure each module when the backward pass reaches it; gives the list of outputs at which the graph starts."""
    starts: list[Tensor] = []
    kept: dict[str, Tensor] = {}

    def expect_gradient(module: ProjectionModule, inputs: Tensor, output: Tensor) -> None:
        if not output.requires_grad:
            starts.append(output.requires_grad_())
        kept[module.name] = inputs.detach()
        output.register_hook(lambda gradient: note(module, gradient))

    def note(module: ProjectionModule, gradient: Tensor) -> None:
        with torch.no_grad():
            # Taken out: a hook would hold its input until the whole graph goes, and not let it go with its layer.
            found[module.name] = measure(module, kept.pop(module.name), gradient)

    handles = [
        linear_map_of(model, module).register_forward_hook(
            lambda _, inputs, output, module=module: expect_gradient(module, inputs[0], output)
        )
        for module in modules
    ]
    try:
        yield starts
    finally:
        for handle in handles:
            handle.remove()


class _InputGrams:
    """‖Σ_t g_t a_tᵀ‖_F of each prompt, by Gram matrices or directly, whichever takes fewer operations.

    Q, K and V have the same input, and so have Gate and Up: its Gram matrix is made once. The products are float32, or
    float64 for a model in float64: half precision would lose digits in sums of thousands of terms.
    """

    def __init__(self) -> None:
        self._inputs: Tensor | None = None
        self._gram: Tensor | None = None

    def outer_product_norm(
        self, inputs: Float[Tensor, "batch seq in"], gradients: Float[Tensor, "batch seq out"]
    ) -> Float[Tensor, " batch"]:
        """Return the norms."""
        precision = torch.promote_types(inputs.dtype, torch.float32)
        tokens, wide, high = inputs.shape[1], inputs.shape[2], gradients.shape[2]
        g = gradients.to(precision)
        if tokens * (wide + high) < wide * high:
            squared = (self._gram_of(inputs, precision) * (g @ g.mT)).sum(dim=(1, 2), dtype=torch.float64)
        else:
            squared = (g.mT @ inputs.to(precision)).square().sum(dim=(1, 2), dtype=torch.float64)
        return squared.clamp_min(0).sqrt()

    def _gram_of(self, inputs: Tensor, precision: torch.dtype) -> Tensor:
        if self._gram is None or self._inputs is None or not _is_same_view(self._inputs, inputs):
            a = inputs.to(precision)
            self._inputs, self._gram = inputs, a @ a.mT
        return self._gram


def _is_same_view(first: Tensor, second: Tensor) -> bool:
    """Tell whether two living tensors are the same numbers at the same place."""
    return (first.data_ptr(), first.shape, first.stride(), first.dtype) == (
        second.data_ptr(),
        second.shape,
        second.stride(),
        second.dtype,
    )
