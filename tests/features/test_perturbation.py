import pytest
import torch
from architectures import EXPERTS, FUSED, make_architecture
from torch import Tensor

from securetune.features import perturbed
from securetune.features.perturbation import gaussian_noise, root_mean_square
from securetune.models import ChatModel, map_modules


def _bits(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return every parameter's raw bytes: comparing values would let -0.0 pass for 0.0."""
    return {name: value.detach().view(torch.uint8).clone() for name, value in model.named_parameters()}


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_perturbed_module_is_restored_bit_for_bit(tiny_chat_model: ChatModel, dtype: torch.dtype):
    """In every precision, and for -0.0 too, where subtracting the noise again would not."""
    model = tiny_chat_model.model.to(dtype)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, :4] = torch.tensor([-0.0, 0.0, 1e-8, -1e-8])
    before = _bits(model)
    for module in map_modules(model):
        with perturbed(model, [module], 0.7, seed=3):
            changed = {name for name, value in _bits(model).items() if not torch.equal(value, before[name])}
            assert changed == {module.weight_name}
        assert _same(before, _bits(model))


@pytest.mark.parametrize("name", [*FUSED, *EXPERTS])
def test_parts_of_one_parameter_are_perturbed_apart_and_together(name: str):
    """Each gets its own noise, in its own rows only, alone or in company; and all is restored bit for bit."""
    model = make_architecture(*{**FUSED, **EXPERTS}[name], vocab_size=20)
    before = _bits(model)
    values = {name: value.detach().clone() for name, value in model.named_parameters()}
    parts = [module for module in map_modules(model) if module.name.endswith("]") and module.layer == 0]
    assert len(parts) >= 2
    alone = {}
    for part in parts:
        with perturbed(model, [part], 0.7, seed=3):
            changed = model.get_parameter(part.weight_name).detach() != values[part.weight_name]
            assert changed.sum() == part.parameter_count
            assert part.part.of_weight(changed.float()).all()
            alone[part.name] = part.weight_in(model).detach().clone()
        assert _same(before, _bits(model))
    with perturbed(model, parts, 0.7, seed=3):
        assert all(torch.equal(part.weight_in(model), alone[part.name]) for part in parts)
    assert _same(before, _bits(model))


def test_subtracting_the_noise_would_not_round_trip_in_bfloat16(tiny_chat_model: ChatModel):
    """The reason why the original is copied back."""
    weight = tiny_chat_model.model.model.layers[0].mlp.up_proj.weight.detach().to(torch.bfloat16)
    noise = (root_mean_square(weight) * gaussian_noise(weight, "m", 0)).to(torch.bfloat16)
    assert not torch.equal((weight + noise) - noise, weight)


def test_an_error_while_perturbed_still_restores(tiny_chat_model: ChatModel):
    """A run that is interrupted inside leaves the model as it was."""
    before = _bits(tiny_chat_model.model)
    with pytest.raises(KeyboardInterrupt), perturbed(tiny_chat_model.model, map_modules(tiny_chat_model.model), 1.0, 0):
        raise KeyboardInterrupt
    assert _same(before, _bits(tiny_chat_model.model))


def test_the_noise_has_the_asked_size_relative_to_the_weights(tiny_chat_model: ChatModel):
    """The root mean square of the change is ε times that of the weights."""
    module = map_modules(tiny_chat_model.model)[4]
    weight = tiny_chat_model.model.get_parameter(module.weight_name)
    original = weight.detach().clone()
    with perturbed(tiny_chat_model.model, [module], 0.3, seed=0):
        change = root_mean_square(weight - original)
    assert change / root_mean_square(original) == pytest.approx(0.3, rel=0.05)


def test_noise_depends_on_module_and_seed_but_not_on_order_or_company(tiny_chat_model: ChatModel):
    """A module perturbed jointly gets what it gets alone, so that work can be divided in any way."""
    model = tiny_chat_model.model
    first, second = map_modules(model)[:2]
    weight = model.get_parameter(first.weight_name)
    with perturbed(model, [first], 0.5, seed=1):
        alone = weight.detach().clone()
    with perturbed(model, [second, first], 0.5, seed=1):
        assert torch.equal(weight, alone)
    with perturbed(model, [first], 0.5, seed=2):
        assert not torch.equal(weight, alone)
    assert not torch.equal(gaussian_noise(weight, "a", 1), gaussian_noise(weight, "b", 1))


def test_the_callers_random_state_is_left_alone(tiny_chat_model: ChatModel):
    """An analysis does not change what a later training draws."""
    state = torch.get_rng_state()
    with perturbed(tiny_chat_model.model, map_modules(tiny_chat_model.model), 0.5, seed=1):
        pass
    assert torch.equal(torch.get_rng_state(), state)
