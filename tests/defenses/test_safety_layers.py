"""SPPFT: on a model built so that one layer tells harmful from harmless, that layer is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import ACTIONS, make_tiny_network, make_tiny_tokenizer

from securetune.config import TrainingSettings
from securetune.data.prompts import ProbeSet
from securetune.defenses import DefenseContext, ParameterSets
from securetune.defenses.sppft import FrozenSafetyLayers
from securetune.defenses.sppft.locating import LayerRange, initial_range, locate_safety_layers, scaled_layers
from securetune.errors import ConfigError, RunError
from securetune.models import ChatModel, load, map_modules

TELLING, LAYERS = 2, 4
HARM = {"harmful": (3.0, 3.0, 3.0, 3.0), "harmless": (0.1, 0.15, 0.2, 0.25)}
"""How much of the direction of harm the embedding of each action has; the last two harmless ones are nearly enough."""


def make_telling_model(tmp_path: Path, telling: int | None = TELLING) -> ChatModel:
    """Build a model in which one layer moves the direction of harm from the action to the last token.

    Its head says "sorry" along that direction, and "sure" along the last token's own, which the last layer adds to.
    The other layers do nothing.
    """
    tokenizer = make_tiny_tokenizer()
    network = make_tiny_network(len(tokenizer), layers=LAYERS)
    ids = tokenizer.get_vocab()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" not in name:
                weight.zero_()
        network.model.embed_tokens.weight[:, 2:] = 0.1
        for kind, amounts in HARM.items():
            for action, amount in zip(ACTIONS[kind], amounts, strict=True):
                network.model.embed_tokens.weight[ids[action], 0] = amount
        network.model.embed_tokens.weight[ids["<assistant>"], 1] = 1.0
        if telling is not None:  # without queries and keys every token is attended to alike
            attention = network.model.layers[telling].self_attn
            attention.v_proj.weight[:, 0] = 1.0
            attention.o_proj.weight[0] = 3.0 / network.config.hidden_size
        answering = network.model.layers[LAYERS - 1].self_attn  # moves the last token's own direction
        answering.v_proj.weight[:, 1] = 1.0
        answering.o_proj.weight[1] = 0.5 / network.config.hidden_size
        network.lm_head.weight[ids["sorry"], 0] = 4.0
        network.lm_head.weight[ids["sure"], 1] = 4.0
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return load(str(tmp_path))


def test_the_layer_that_tells_is_found(tmp_path: Path, tiny_probes: ProbeSet) -> None:
    """The gap appears at that layer; scaling it makes the model refuse more harmless requests, and no other does.

    The factor is the first by which the number of refusals differs enough from range to range.
    """
    found = locate_safety_layers(make_telling_model(tmp_path), tiny_probes, 16, seed=0)
    assert found.layers == LayerRange(TELLING, TELLING)
    gap = found.evidence["angle_gap_degrees"]
    assert gap[:TELLING] == pytest.approx([0.0] * TELLING, abs=1e-6)
    assert gap[TELLING] > 10
    refused = found.evidence["refused_by_first_layer"]
    assert found.evidence["counted"] == "harmless"
    assert refused["2-2"][0] > found.evidence["refused_unscaled"]["harmless"][0]


def test_a_model_that_does_not_tell_has_none(tmp_path: Path, tiny_probes: ProbeSet) -> None:
    """Where no layer tells harmful from harmless, one sentence says so, and what to do."""
    with pytest.raises(RunError, match=r"no layer of the model tells harmful from harmless.*method_options.layers"):
        locate_safety_layers(make_telling_model(tmp_path, telling=None), tiny_probes, 16, seed=0)


def test_the_rise_of_the_gap() -> None:
    """From the first layer with a tenth of the largest gap to the first with nine tenths, however it gets there."""
    assert initial_range([0.0, 0.9, 1.1, 5.0, 4.0, 9.0, 10.0, 8.0]) == LayerRange(2, 5)
    assert initial_range([3.0, 1.0]) == LayerRange(0, 0)
    with pytest.raises(RunError):
        initial_range([0.0, -1.0])


def test_scaled_layers_come_back_bit_for_bit(tiny_chat_model: ChatModel) -> None:
    """Within the context all weights of those layers are scaled and no other; afterwards every weight is as before."""
    model = tiny_chat_model.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with scaled_layers(model, LayerRange(1, 1), 1.3):
        for name, weight in model.named_parameters():
            expected = before[name] * 1.3 if ".layers.1." in name else before[name]
            assert torch.equal(weight, expected), name
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def context_of(chat: ChatModel) -> DefenseContext:
    names = tuple(name for name, _ in chat.model.named_parameters())
    modules = map_modules(chat.model)
    return DefenseContext(TrainingSettings(), 1e-3, 4, ParameterSets((), names), modules=modules)


def test_given_layers_do_not_train(tiny_chat_model: ChatModel) -> None:
    """Everything but the given layers is in the one group: the other layers, embeddings, norms and head."""
    context = context_of(tiny_chat_model)
    defense = FrozenSafetyLayers({"layers": [1, 1]})
    ((group,),) = [phase.groups for phase in defense.phases(context)]
    left_out = set(context.parameters.all) - set(group.parameter_names)
    assert left_out == {name for name in context.parameters.all if ".layers.1." in name}
    assert defense.notes() == ["sppft freezes layers 1 to 1 of 2, as they were given."]
    assert defense.prompts_used("tiny-world") == []


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([1, 2], r"method_options.layers must be in \[0, 1\], as the model has 2 layers; got \[1, 2\]"),
        ([0, 1], "the safety layers 0 to 1 hold everything that may train"),
    ],
)
def test_layers_that_cannot_be_frozen(layers: list[int], sentence: str, tiny_chat_model: ChatModel) -> None:
    """Layers that the model does not have, or that leave nothing to train, are refused."""
    context = context_of(tiny_chat_model)
    names = tuple(name for name in context.parameters.all if ".layers." in name)
    context = DefenseContext(TrainingSettings(), 1e-3, 4, ParameterSets((), names), modules=context.modules)
    with pytest.raises(ConfigError, match=sentence):
        FrozenSafetyLayers({"layers": layers}).phases(context)
