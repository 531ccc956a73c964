import pytest
import torch
from tiny_models import make_tiny_network, make_tiny_tokenizer, tiny_prompts
from torch import Tensor

from securetune.analysis import sweep_modules
from securetune.config import ModelSettings
from securetune.features import (
    FullPass,
    MeanAblation,
    Openings,
    SafetyClassifier,
    UpdatePerturbation,
    last_token_states,
    make_batches,
    mean_outputs,
    perturbed,
    refusal_margin,
)
from securetune.models import ChatModel, identify, map_modules

PROMPTS = tiny_prompts("harmful", 0, 7)
LAYERS = 3
OPENINGS = Openings(refusal=(3, 8), compliance=(20, 5), refusal_mass=1.0, compliance_mass=1.0)


@pytest.fixture
def chat() -> ChatModel:
    """A random model of three layers, so that there is a middle one."""
    tokenizer, settings = make_tiny_tokenizer(), ModelSettings(name="test")
    model = make_tiny_network(len(tokenizer), layers=LAYERS)
    return ChatModel(model, tokenizer, settings, identify(model, tokenizer, settings))


def _classifiers(count: int = LAYERS) -> list[SafetyClassifier]:
    generator = torch.Generator().manual_seed(5)
    return [SafetyClassifier(torch.randn(32, generator=generator, dtype=torch.float64), 0.1) for _ in range(count)]


def _all_layers(chat: ChatModel) -> Tensor:
    return last_token_states(chat.model, chat.tokenizer, PROMPTS, layers="all")


def _means(chat: ChatModel) -> dict[str, Tensor]:
    prompts = [*PROMPTS, *tiny_prompts("harmless", 0, 5)]
    batches = make_batches(chat.tokenizer, prompts, 5, chat.model.device)
    return mean_outputs(chat.model, map_modules(chat.model), batches)


def test_several_readouts_of_one_sweep_are_those_of_a_sweep_each(chat: ChatModel):
    """Reading another quantity off the same passes changes no number, and nor does following the drift."""
    readouts = [_classifiers()[0], refusal_margin(chat, OPENINGS)]
    together = sweep_modules(chat, PROMPTS, readouts, [0.5, 2.0], [0, 1], layer_classifiers=_classifiers()).readouts
    assert list(together) == ["harmfulness classifier", "refusal margin"]
    for readout in readouts:
        alone = sweep_modules(chat, PROMPTS, [readout], [0.5, 2.0], [0, 1]).readouts[readout.name]
        assert alone.perturbed.shape == (2, 7 * LAYERS, 2, len(PROMPTS))
        assert torch.equal(alone.intact, together[readout.name].intact)
        torch.testing.assert_close(alone.perturbed, together[readout.name].perturbed, rtol=1e-5, atol=1e-5)


def test_a_sweep_of_noise_is_perturbing_by_hand(chat: ChatModel):
    """Every readout at every size and seed is what a whole pass over the perturbed model gives."""
    readouts = [_classifiers()[0], refusal_margin(chat, OPENINGS)]
    found = sweep_modules(chat, PROMPTS, readouts, [0.5, 2.0], [3, 8], batch_size=4).readouts
    for index, module in list(enumerate(map_modules(chat.model)))[::4]:
        for place, size in enumerate((0.5, 2.0)):
            for draw, seed in enumerate((3, 8)):
                with perturbed(chat.model, [module], size, seed):
                    states = last_token_states(chat.model, chat.tokenizer, PROMPTS)
                for readout in readouts:
                    expected = readout.logits(states).double()
                    got = found[readout.name].perturbed[place, index, draw]
                    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_sweep_of_some_modules_is_that_part_of_a_sweep_of_all(chat: ChatModel):
    """In the order in which they are given, with the same numbers."""
    readout, modules = _classifiers()[0], map_modules(chat.model)
    whole = sweep_modules(chat, PROMPTS, [readout], [0.5], [0, 1]).readouts[readout.name]
    chosen = [16, 2, 9]
    part = sweep_modules(chat, PROMPTS, [readout], [0.5], [0, 1], modules=[modules[index] for index in chosen])
    assert torch.equal(part.readouts[readout.name].perturbed, whole.perturbed[:, chosen])


@pytest.mark.parametrize("whole_passes", [False, True])
def test_the_drift_is_the_cosine_of_whole_passes(chat: ChatModel, whole_passes: bool, monkeypatch: pytest.MonkeyPatch):
    """For each prompt, seed and layer from the module's on; NaN below, with either source."""
    if whole_passes:
        monkeypatch.setattr("securetune.analysis.sweep.open_replay", FullPass)
    classifiers, seeds = _classifiers(), [0, 1, 2]
    drift = sweep_modules(
        chat, PROMPTS, classifiers[-1:], [9.0, 1.0], seeds, batch_size=4, layer_classifiers=classifiers
    ).drift
    intact = _all_layers(chat)
    for index, module in enumerate(map_modules(chat.model)):
        cosine, hits = torch.zeros(2, LAYERS, len(seeds), len(PROMPTS))
        for place, seed in enumerate(seeds):
            with perturbed(chat.model, [module], 1.0, seed):
                states = _all_layers(chat)
            dot = (states * intact).sum(-1) / (states.norm(dim=-1) * intact.norm(dim=-1))
            cosine[:, place] = dot
            hits[:, place] = torch.stack([c.predict(s).float() for c, s in zip(classifiers, states, strict=True)])
        for found, expected in ((drift.cosine[index], cosine), (drift.hits[index], hits)):
            assert torch.isnan(found[: module.layer]).all()
            torch.testing.assert_close(found[module.layer :], expected[module.layer :], rtol=1e-4, atol=1e-4)


def test_no_drift_is_followed_without_layer_classifiers(chat: ChatModel):
    """It is None rather than a table of nothing."""
    assert sweep_modules(chat, PROMPTS, _classifiers(1), [1.0], [0]).drift is None


@pytest.mark.parametrize("size", [0.5, 1.0])
def test_a_sweep_of_mean_ablations_is_a_whole_pass_with_hooks(chat: ChatModel, size: float):
    """For every module, and once, whatever the number of seeds."""
    means, readout = _means(chat), refusal_margin(chat, OPENINGS)
    kind = MeanAblation(means)
    found = sweep_modules(chat, PROMPTS, [readout], [size], [0, 1, 2], batch_size=4, perturbation=kind)
    perturbed_logits = found.readouts[readout.name].perturbed
    assert perturbed_logits.shape == (1, 7 * LAYERS, 1, len(PROMPTS))
    for index, module in enumerate(map_modules(chat.model)):
        mean = means[module.name]
        handle = chat.model.get_submodule(module.name).register_forward_hook(
            lambda _, __, output, mean=mean: (1 - size) * output + size * mean
        )
        expected = readout.logits(last_token_states(chat.model, chat.tokenizer, PROMPTS)).double()
        handle.remove()
        torch.testing.assert_close(perturbed_logits[0, index, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_sweep_of_updates_takes_each_run_once(chat: ChatModel):
    """Two runs and five seeds give two draws: each run's own part of the module's update, at every size."""
    model, generator = chat.model, torch.Generator().manual_seed(0)
    modules, readout = map_modules(chat.model), _classifiers(1)[0]
    weights = {module.name: model.get_parameter(module.weight_name) for module in modules}
    runs = [{n: 0.1 * torch.randn(w.shape, generator=generator) for n, w in weights.items()} for _ in range(2)]
    kind = UpdatePerturbation(runs)
    found = sweep_modules(chat, PROMPTS, [readout], [1.0, 3.0], range(5), perturbation=kind).readouts[readout.name]
    assert found.perturbed.shape == (2, 7 * LAYERS, 2, len(PROMPTS))
    for index, module in list(enumerate(modules))[::5]:
        for run, update in enumerate(runs):
            kept = weights[module.name].detach().clone()
            with torch.no_grad():
                weights[module.name].add_(3 * update[module.name])
                expected = readout.logits(last_token_states(model, chat.tokenizer, PROMPTS))
                weights[module.name].copy_(kept)
            torch.testing.assert_close(found.perturbed[1, index, run], expected, rtol=1e-4, atol=1e-4)


def test_shifts_and_hits_follow_from_the_values(chat: ChatModel):
    """A shift is the distance from the intact value, a hit a value above 0."""
    readout = _classifiers(1)[0]
    found = sweep_modules(chat, PROMPTS, [readout], [4.0], [0, 1]).readouts[readout.name]
    assert torch.equal(found.shifts(), found.perturbed - found.intact)
    assert torch.equal(found.hits(), (found.perturbed > 0).double())
    assert 0 < found.hits().mean() < 1
