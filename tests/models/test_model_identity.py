import pytest
import torch

from securetune.config import ModelSettings
from securetune.errors import ArtifactError
from securetune.models import ChatModel, chat_template_hash, check_same_model, identify, load


def test_the_same_weights_in_another_precision_are_the_same_model(tiny_model_dir):
    """A model analyzed in float32 and trained in bfloat16 keeps its fingerprint."""
    single, half = (load(ModelSettings(name=str(tiny_model_dir), dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert half.model.dtype == torch.bfloat16
    assert single.identity == half.identity


def test_a_fine_tuned_model_is_another_model(tiny_chat_model: ChatModel):
    """A change of one tensor is seen, and the sentence says whose weights differ."""
    with torch.no_grad():
        tiny_chat_model.model.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    tuned = identify(tiny_chat_model.model, tiny_chat_model.tokenizer, ModelSettings(name="tuned"))
    with pytest.raises(
        ArtifactError, match=r'modules\.json: was made for ".*", whose weights differ from those of "tuned"'
    ):
        check_same_model(tiny_chat_model.identity, tuned, "modules.json")


def test_another_architecture_is_named_with_its_size(tiny_chat_model: ChatModel):
    """The sentence gives architecture and number of parameters of both."""
    other = tiny_chat_model.identity.model_copy(update={"architecture": "PhiForCausalLM", "parameter_count": 7})
    with pytest.raises(ArtifactError, match=r"PhiForCausalLM, 7 parameters.*LlamaForCausalLM, 18,592 parameters"):
        check_same_model(other, tiny_chat_model.identity, "modules.json")


def test_another_chat_template_is_refused_even_with_the_same_weights(tiny_chat_model: ChatModel):
    """Prompts would be rendered differently, so that nothing measured holds."""
    old = tiny_chat_model.identity
    tiny_chat_model.tokenizer.chat_template += " "
    new = identify(tiny_chat_model.model, tiny_chat_model.tokenizer, tiny_chat_model.settings)
    assert new.chat_template_hash == chat_template_hash(tiny_chat_model.tokenizer) != old.chat_template_hash
    with pytest.raises(ArtifactError, match="another chat template"):
        check_same_model(old, new, "modules.json")


def test_the_name_alone_does_not_make_another_model(tiny_chat_model: ChatModel):
    """The same files in another folder are the same model."""
    moved = tiny_chat_model.identity.model_copy(update={"name": "moved"})
    assert moved != tiny_chat_model.identity
    check_same_model(tiny_chat_model.identity, moved, "x")  # raises for another model
