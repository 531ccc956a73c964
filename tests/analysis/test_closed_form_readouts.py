import pytest
import torch
from architectures import EXPERTS, FUSED, HEADS, SUPPORTED, make_architecture
from tiny_models import make_tiny_network, make_tiny_tokenizer, tiny_prompts
from torch import Tensor, nn

from securetune.analysis import closed_form_shifts, sweep_modules
from securetune.config import ModelSettings
from securetune.features import Openings, RefusalMargin, SafetyClassifier, UpdatePerturbation, refusal_margin
from securetune.features.closed_form import directional_shifts
from securetune.features.outer_products import OuterProductNorms
from securetune.features.perturbation import root_mean_square
from securetune.models import ChatModel, identify, map_modules, render_prompt

PROMPTS = [*tiny_prompts("harmful", 0, 4), *tiny_prompts("harmful", 1, 3)]
REFUSAL, COMPLIANCE = (3, 8, 11), (20, 5)
ARCHITECTURES = {**SUPPORTED, **HEADS}


def _chat(model: nn.Module) -> ChatModel:
    tokenizer = make_tiny_tokenizer()
    settings = ModelSettings(name="test")
    return ChatModel(model, tokenizer, settings, identify(model, tokenizer, settings))


def _architecture(name: str) -> ChatModel:
    return _chat(make_architecture(*ARCHITECTURES[name], vocab_size=len(make_tiny_tokenizer())))


def _margin(chat: ChatModel) -> RefusalMargin:
    return refusal_margin(chat, Openings(REFUSAL, COMPLIANCE, 1.0, 1.0))


def _classifier(hidden: int = 32) -> SafetyClassifier:
    generator = torch.Generator().manual_seed(5)
    return SafetyClassifier(torch.randn(hidden, generator=generator, dtype=torch.float64), bias=0.3)


def _gradients(chat: ChatModel) -> list[list[Tensor]]:
    """Return for each prompt the gradients of the refusal log-odds of the model's own output, by module."""
    modules = map_modules(chat.model)
    weights = [chat.model.get_parameter(module.weight_name) for module in modules]
    found = []
    for prompt in PROMPTS:
        text = render_prompt(chat.tokenizer, prompt.messages)
        ids = chat.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        chances = chat.model(input_ids=ids).logits[0, -1].float().log_softmax(dim=-1)
        log_odds = chances[list(REFUSAL)].logsumexp(0) - chances[list(COMPLIANCE)].logsumexp(0)
        gradients = torch.autograd.grad(log_odds, weights)
        found.append([module.part.of_weight(g) for module, g in zip(modules, gradients, strict=True)])
    return found


def _update(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        module.name: 0.05 * torch.randn(module.weight_in(model).shape, generator=generator)
        for module in map_modules(model)
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_closed_form_of_the_refusal_margin_equals_autograd_on_the_weights(name: str):
    """One pass over all prompts gives what a backward pass a prompt, from the model's own output, gives."""
    chat = _architecture(name)
    shifts = closed_form_shifts(chat, PROMPTS, _margin(chat), epsilon=0.5, batch_size=4)
    weights = [module.weight_in(chat.model) for module in map_modules(chat.model)]
    for place, gradients in enumerate(_gradients(chat)):
        norms = [root_mean_square(w) * g.double().norm().item() for w, g in zip(weights, gradients, strict=True)]
        torch.testing.assert_close(shifts[:, place], 0.5 * torch.tensor(norms).double(), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["llama", "gemma2 with a low soft cap", "granite with scaled logits", *FUSED, *EXPERTS]
)
def test_the_shift_along_an_update_is_its_product_with_the_gradient(name: str):
    """⟨∂z/∂W, ΔW⟩ of every module and prompt, sign included, in proportion to the size."""
    chat = _architecture(name)
    update = _update(chat.model)
    shifts = directional_shifts(chat, PROMPTS, _margin(chat), update, size=2.0, batch_size=4)
    assert (shifts.dtype, shifts.min() < 0 < shifts.max()) == (torch.float64, True)
    for place, gradients in enumerate(_gradients(chat)):
        products = [(update[m.name] * g).sum() for m, g in zip(map_modules(chat.model), gradients, strict=True)]
        torch.testing.assert_close(shifts[:, place], 2 * torch.stack(products).double(), rtol=2e-3, atol=1e-5)


def test_the_shift_along_an_update_is_the_slope_of_what_the_update_does():
    """It equals the central difference of perturbing each module a little forwards and backwards."""
    chat, step = _chat(make_tiny_network(len(make_tiny_tokenizer()))), 0.02
    readouts, update = [_margin(chat), _classifier()], _update(chat.model)
    sweep = sweep_modules(chat, PROMPTS, readouts, [-step, step], [0], perturbation=UpdatePerturbation([update]))
    for readout in readouts:
        below, above = sweep.readouts[readout.name].perturbed[:, :, 0]
        expected = directional_shifts(chat, PROMPTS, readout, update)
        tolerance = 1e-3 * expected.abs().max().item()
        torch.testing.assert_close((above - below) / (2 * step), expected, rtol=1e-2, atol=tolerance)


def test_the_shift_along_an_update_keeps_the_models_precision():
    """In float64 three thirds of an update are the whole update, to more digits than float32 has."""
    chat = _chat(make_tiny_network(len(make_tiny_tokenizer())).double())
    whole = {name: value.double() for name, value in _update(chat.model).items()}
    third = {name: value / 3 for name, value in whole.items()}
    of_whole, of_third = (directional_shifts(chat, PROMPTS, _classifier(), update) for update in (whole, third))
    torch.testing.assert_close(3 * of_third, of_whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_activation_checkpointing_gives_the_same_numbers(name: str):
    """One layer's activations at a time or all at once, in any architecture; and nothing is left on the model."""
    chat = _architecture(name)
    for readout in (_margin(chat), _classifier()):
        whole, by_layer = (
            closed_form_shifts(chat, PROMPTS, readout, batch_size=4, activation_checkpointing=on)
            for on in (False, True)
        )
        torch.testing.assert_close(by_layer, whole, rtol=1e-4, atol=1e-6 * whole.max().item())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in chat.model.modules())
    assert all(parameter.grad is None for parameter in chat.model.parameters())


def test_activation_checkpointing_needs_no_trainable_parameter(tiny_chat_model: ChatModel):
    """Frozen weights and a caller that forbids gradients are no obstacle."""
    free = closed_form_shifts(tiny_chat_model, PROMPTS, _classifier(), activation_checkpointing=True)
    tiny_chat_model.model.requires_grad_(False)
    with torch.no_grad():
        frozen = closed_form_shifts(tiny_chat_model, PROMPTS, _classifier(), activation_checkpointing=True)
    torch.testing.assert_close(frozen, free, rtol=0, atol=0)


def test_activation_checkpointing_never_holds_more_than_one_layers_graph():
    """What is kept for the backward pass is about one layer of eight, instead of all of them."""
    chat = _chat(make_tiny_network(len(make_tiny_tokenizer()), layers=8))
    most = {on: _most_saved_bytes(chat, on) for on in (False, True)}
    assert most[True] < most[False] / 4


def _most_saved_bytes(chat: ChatModel, checkpointing: bool) -> int:
    """Return the largest sum of the sizes of all tensors that graphs held at any one time."""
    held = most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, most
            self.tensor = tensor
            held += tensor.nbytes
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        closed_form_shifts(chat, PROMPTS, _classifier(), activation_checkpointing=checkpointing)
    return most


def _squared_norms(inputs: Tensor, gradients: Tensor) -> Tensor:
    return torch.einsum("bto,bti->boi", gradients.double(), inputs.double()).flatten(1).square().sum(dim=1)


def test_modules_with_the_same_input_share_its_gram_matrix():
    """Q, K and V, or Gate and Up: the second product is taken with the matrix that the first one made."""
    grams, generator = OuterProductNorms(), torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 2, 9, generator=generator)
    grams.squared(inputs, torch.randn(3, 2, 9, generator=generator))
    made = grams._gram
    gradients = torch.randn(3, 2, 7, generator=generator)
    torch.testing.assert_close(
        grams.squared(inputs.detach(), gradients), _squared_norms(inputs, gradients), rtol=1e-5, atol=1e-6
    )
    assert grams._gram is made


def test_another_input_in_reused_memory_is_not_mistaken_for_the_last_one():
    """Tensors that are made and freed one after another, as those of a backward pass are, each get their own matrix."""
    grams, generator = OuterProductNorms(), torch.Generator().manual_seed(0)
    for _ in range(20):
        inputs, gradients = (torch.randn(3, 2, width, generator=generator) for width in (9, 7))
        torch.testing.assert_close(
            grams.squared(inputs, gradients), _squared_norms(inputs, gradients), rtol=1e-5, atol=1e-6
        )
        del inputs


def test_a_part_of_the_last_input_is_not_mistaken_for_all_of_it():
    """The first tokens, or the first features, begin at the same address and are another input all the same."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(1, 4, 18, generator=generator)
    for part in (whole[:, :2], whole[:, :, :15], whole.flatten().view(1, 3, 24)):
        grams = OuterProductNorms()
        for inputs in (whole, part, whole):
            gradients = torch.randn(1, inputs.shape[1], 17, generator=generator)
            torch.testing.assert_close(
                grams.squared(inputs, gradients), _squared_norms(inputs, gradients), rtol=1e-5, atol=1e-6
            )
