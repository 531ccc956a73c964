"""Every module's sensitivity from one forward and one backward pass.

To first order, noise of size ε on one module's weights W moves the classifier's logit z of a prompt by a normal
variable of standard deviation

    ε · rms(W) · ‖∂z/∂W‖_F.

A projection computes out_t = W·a_t at each token t. With g_t = ∂z/∂out_t, the gradient is ∂z/∂W = Σ_t g_t a_tᵀ, and
its squared norm is Σ_{t,u} (a_t·a_u)(g_t·g_u): the sum over the elementwise product of two Gram matrices. So the inputs
a and the output gradients g, which one forward and backward pass gives for all modules and all prompts, are enough; no
weight gradient is ever formed, and the parameters need not require one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from securetune.data.prompts import Prompt
from securetune.features.classifier import SafetyClassifier
from securetune.features.hidden_states import TokenBatch, at_last_token, decoder_of, in_callers_order, make_batches
from securetune.features.perturbation import root_mean_square
from securetune.models import ChatModel, ProjectionModule, map_modules

_Trace = dict[str, tuple[Tensor, Tensor]]
"""Module name → its input and its output in the latest forward pass."""


def closed_form_shifts(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    classifier: SafetyClassifier,
    epsilon: float = 1.0,
    batch_size: int = 64,
) -> Float[Tensor, "module prompt"]:
    """Return each module's expected logit shift on each prompt, to first order, in float64.

    Args:
        chat: The model.
        prompts: Requests.
        classifier: Its logit is what shifts.
        epsilon: Relative size of the noise; the result is proportional to it.
        batch_size: Prompts a pass. Activations of a whole batch are held, as in training.

    Returns:
        Root of the expected squared shift, modules in the order of `map_modules`.

    Example:
        >>> shifts = closed_form_shifts(chat, probes.score_harmful, probe.classifier, epsilon=0.5)
        >>> root_mean_square_shift = shifts.square().mean(dim=1).sqrt()
    """
    modules = map_modules(chat.model)
    batches = make_batches(chat.tokenizer, prompts, batch_size, chat.model.device)
    parts = [_gradient_norms(chat.model, modules, batch, classifier).T for batch in batches]
    sizes = [root_mean_square(chat.model.get_parameter(module.weight_name)) for module in modules]
    return epsilon * torch.tensor(sizes, dtype=torch.float64)[:, None] * in_callers_order(parts, batches).T.cpu()


def _gradient_norms(
    model: PreTrainedModel, modules: Sequence[ProjectionModule], batch: TokenBatch, classifier: SafetyClassifier
) -> Float[Tensor, "module batch"]:
    """Return ‖∂z/∂W‖_F for each module and prompt."""
    decoder = decoder_of(model)
    with torch.enable_grad(), _watch(model, decoder, modules) as trace:
        states = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        logits = classifier.logits(at_last_token(states, batch.last))
        # A prompt's logit depends on its own row only, so the gradient of the sum holds each prompt's own gradient.
        gradients = torch.autograd.grad(logits.sum(), [trace[module.name][1] for module in modules])
    inputs = [trace[module.name][0] for module in modules]
    return torch.stack([_outer_product_norm(a, g) for a, g in zip(inputs, gradients, strict=True)])


@contextmanager
def _watch(model: PreTrainedModel, decoder: nn.Module, modules: Sequence[ProjectionModule]) -> Iterator[_Trace]:
    """Note inputs and outputs of the modules while the context is open."""
    trace: _Trace = {}

    def start_graph(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Makes the pass differentiable even when no parameter requires a gradient.
        return output.detach().requires_grad_()

    def note(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        trace[name] = (inputs[0].detach(), output)

    handles = [decoder.get_input_embeddings().register_forward_hook(start_graph)]  # type: ignore[operator]
    for module in modules:
        linear = model.get_submodule(module.weight_name.removesuffix(".weight"))
        handles.append(
            linear.register_forward_hook(lambda _, inputs, output, name=module.name: note(name, inputs, output))
        )
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _outer_product_norm(
    inputs: Float[Tensor, "batch seq in"], gradients: Float[Tensor, "batch seq out"]
) -> Float[Tensor, " batch"]:
    """Return ‖Σ_t g_t a_tᵀ‖_F of each prompt, by Gram matrices or directly, whichever takes fewer operations."""
    a, g = inputs.double(), gradients.double()
    tokens, wide, high = a.shape[1], a.shape[2], g.shape[2]
    if tokens * (wide + high) < wide * high:
        squared = ((a @ a.mT) * (g @ g.mT)).sum(dim=(1, 2))
    else:
        squared = (g.mT @ a).square().sum(dim=(1, 2))
    return squared.clamp_min(0).sqrt()
