import pytest
import torch
from tiny_models import tiny_prompts
from torch import Tensor

from securetune.features import UpdatePerturbation, last_token_states
from securetune.models import ChatModel, map_modules

PROMPTS = tiny_prompts("harmful", 0, 4)


def _tuned_weights(model: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Return other weights for every module, none further than a tenth from the old one.

    Two floats within a factor of two of each other have an exact difference, so W + (W' - W) is W' bit for bit.
    """
    torch.manual_seed(seed)
    weights = {module.name: model.get_parameter(module.weight_name).detach() for module in map_modules(model)}
    return {name: weight * (1 + 0.1 * (2 * torch.rand_like(weight) - 1)) for name, weight in weights.items()}


def _update(model: torch.nn.Module, tuned: dict[str, Tensor]) -> dict[str, Tensor]:
    return {m.name: tuned[m.name] - model.get_parameter(m.weight_name).detach() for m in map_modules(model)}


def _bits(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().view(torch.uint8).clone() for name, value in model.named_parameters()}


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_whole_update_on_all_modules_is_the_tuned_model(tiny_chat_model: ChatModel):
    """At α = 1 the weights are the fine-tuned ones bit for bit, and the states are those of the fine-tuned model."""
    model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
    modules, tuned = map_modules(model), _tuned_weights(model)
    before = _bits(model)
    with UpdatePerturbation([_update(model, tuned)]).applied(model, modules, 1.0, seed=0):
        assert all(torch.equal(model.get_parameter(m.weight_name), tuned[m.name]) for m in modules)
        found = last_token_states(model, tokenizer, PROMPTS)
    assert _same(before, _bits(model))
    with torch.no_grad():
        for module in modules:
            model.get_parameter(module.weight_name).copy_(tuned[module.name])
    assert torch.equal(found, last_token_states(model, tokenizer, PROMPTS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_update_is_undone_bit_for_bit(tiny_chat_model: ChatModel, dtype: torch.dtype):
    """In every precision, for one module at a time, after an error too; and only that module changes meanwhile."""
    model = tiny_chat_model.model.to(dtype)
    update = {name: value.float() for name, value in _update(model, _tuned_weights(model)).items()}
    kind, before = UpdatePerturbation([update]), _bits(model)
    for module in map_modules(model)[::3]:
        with pytest.raises(KeyboardInterrupt), kind.applied(model, [module], 4.0, seed=0):  # noqa: PT012 (looks inside)
            changed = {name for name, value in _bits(model).items() if not torch.equal(value, before[name])}
            assert changed == {module.weight_name}
            raise KeyboardInterrupt
        assert _same(before, _bits(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_shift_is_the_size_times_the_update(tiny_chat_model: ChatModel, dtype: torch.dtype):
    """W + α·ΔW, in the weights' own precision."""
    model = tiny_chat_model.model.to(dtype)
    update = _update(model, _tuned_weights(model))
    module = map_modules(model)[5]
    expected = model.get_parameter(module.weight_name).detach() + 0.3 * update[module.name]
    with UpdatePerturbation([update]).applied(model, [module], 0.3, seed=0):
        found = model.get_parameter(module.weight_name).detach().clone()
    torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_the_draws_are_the_runs_however_many_seeds_are_asked_for(tiny_chat_model: ChatModel):
    """Seeds beyond the runs add nothing, fewer leave none out; and a later seed is one of the runs again."""
    model = tiny_chat_model.model
    kind = UpdatePerturbation([_update(model, _tuned_weights(model, seed)) for seed in (0, 1)])
    assert kind.draws(range(100, 108)) == kind.draws([5]) == [0, 1]
    module = map_modules(model)[0]
    found = []
    for seed in range(4):
        with kind.applied(model, [module], 1.0, seed):
            found.append(model.get_parameter(module.weight_name).detach().clone())
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])


def test_an_update_that_lacks_a_module_changes_nothing(tiny_chat_model: ChatModel):
    """The modules before the lacking one are restored."""
    model = tiny_chat_model.model
    first, second = map_modules(model)[:2]
    update = {first.name: _update(model, _tuned_weights(model))[first.name]}
    before = _bits(model)
    with pytest.raises(KeyError), UpdatePerturbation([update]).applied(model, [first, second], 1.0, seed=0):
        pass
    assert _same(before, _bits(model))


def test_an_update_needs_a_run():
    """Without one there is nothing to add, and the error says so."""
    with pytest.raises(ValueError, match="at least one fine-tuning run; got none"):
        UpdatePerturbation([])
