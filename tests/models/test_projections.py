import pytest
from architectures import SUPPORTED, UNSUPPORTED, make_architecture
from peft import LoraConfig, get_peft_model
from torch import nn

from securetune.errors import ModelError
from securetune.models import MODULE_TYPES, ChatModel, map_modules


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_supported_architecture_is_mapped_completely(name: str):
    """Each layer has its seven projections, once each, and each entry names a parameter of the model."""
    model = make_architecture(*SUPPORTED[name], vocab_size=20)
    modules = map_modules(model)
    assert [(m.layer, m.type) for m in modules] == [(layer, kind) for layer in (0, 1) for kind in MODULE_TYPES]
    for module in modules:
        assert model.get_parameter(module.weight_name).numel() == module.parameter_count
        assert isinstance(model.get_submodule(module.name), nn.Linear)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_architecture_without_separate_projections_is_refused_with_what_was_found(name: str):
    """The sentence names the model, what a layer lacks, and the weights that are there instead."""
    kind, extra, sentence = UNSUPPORTED[name]
    with pytest.raises(ModelError, match=sentence):
        map_modules(make_architecture(kind, extra, vocab_size=20))


def test_a_lora_model_has_the_same_modules_under_the_same_names(tiny_chat_model: ChatModel):
    """Under PEFT only the parameter's name changes; it is the frozen base weight's, which does exist."""
    plain = map_modules(tiny_chat_model.model)
    wrapped_model = get_peft_model(tiny_chat_model.model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    wrapped = map_modules(wrapped_model)
    assert [m.name for m in wrapped] == [m.name for m in plain]
    assert [m.parameter_count for m in wrapped] == [m.parameter_count for m in plain]
    names = dict(wrapped_model.named_parameters())
    assert all(module.weight_name in names for module in wrapped)
    assert "base_layer.weight" in wrapped[0].weight_name


def test_one_missing_projection_in_one_layer_is_found(tiny_chat_model: ChatModel):
    """A layer that lacks a projection is named, even if all the others are complete."""
    del tiny_chat_model.model.model.layers[1].mlp.gate_proj
    with pytest.raises(ModelError, match="layer 1 lacks Gate"):
        map_modules(tiny_chat_model.model)
