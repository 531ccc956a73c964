"""What a model's files tell of its identity, held against the identity of the loaded model."""

from pathlib import Path

import pytest
import torch
from architectures import SUPPORTED, make_architecture
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_network, make_tiny_tokenizer

from securetune.artifacts import ModelIdentity
from securetune.config import ModelSettings
from securetune.errors import ArtifactError
from securetune.models import (
    check_model,
    check_same_model,
    check_same_model_in_files,
    identity_in_files,
    list_models,
    load,
)

CHANGES = {
    "architecture": "GemmaForCausalLM",
    "parameter_count": 7,
    "weights_fingerprint": "of other weights",
    "chat_template_hash": "of another template",
}


RENAMED_IN_FILES = ("gpt-neox", "mixtral", "qwen3-moe")
"""Their files have some weights under other names, or each expert's apart, which only loading puts together."""


def require_rest_left_to_loading(settings: ModelSettings) -> None:
    """The files tell architecture, size and template; that the weights differ is found after loading."""
    identity = load(settings).identity
    check_same_model_in_files(identity, settings, "modules.json")
    told = refused_changes(identity, settings)
    assert {"architecture", "chat_template_hash"} <= set(told)
    with pytest.raises(ArtifactError, match="whose weights differ"):
        check_same_model(identity.model_copy(update={"weights_fingerprint": "of others"}), identity, "modules.json")


def refused_changes(identity: ModelIdentity, settings: ModelSettings) -> list[str]:
    """Change one field after the other, and return those whose change the files tell."""
    refused = []
    for field, value in CHANGES.items():
        try:
            check_same_model_in_files(identity.model_copy(update={field: value}), settings, "modules.json")
        except ArtifactError:
            refused.append(field)
    return refused


def require_all_told(settings: ModelSettings) -> None:
    identity = load(settings).identity
    check_same_model_in_files(identity, settings, "modules.json")
    assert refused_changes(identity, settings) == list(CHANGES)


@pytest.mark.parametrize("architecture", SUPPORTED)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_folder_tells_the_whole_identity(architecture: str, tied: bool, tmp_path: Path):
    """For every architecture, in one file or several, the files give the identity that loading gives."""
    kind, extra = SUPPORTED[architecture]
    tokenizer = make_tiny_tokenizer()
    model = make_architecture(kind, {**extra, "tie_word_embeddings": tied}, len(tokenizer))
    model.save_pretrained(tmp_path, max_shard_size="20KB" if tied else "5GB")
    tokenizer.save_pretrained(tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == tied
    for dtype in ("auto", "bfloat16"):
        if architecture in RENAMED_IN_FILES:
            require_rest_left_to_loading(ModelSettings(name=str(tmp_path), dtype=dtype))
        else:
            require_all_told(ModelSettings(name=str(tmp_path), dtype=dtype))


@pytest.mark.parametrize("name", [model.name for model in list_models()])
def test_an_embedded_model_tells_the_whole_identity(name: str):
    """The same holds for the checkpoints of the package."""
    settings = ModelSettings(name=name)
    identity = load(settings).identity
    check_same_model_in_files(identity, settings, "modules.json")
    assert refused_changes(identity, settings) == list(CHANGES)


def test_the_weights_are_not_loaded(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """Of each tensor only the rows are read that the fingerprint takes."""
    read = []
    original = identity_in_files._sample

    class Watched:
        def __init__(self, stored):
            self.stored = stored

        def get_shape(self):
            return self.stored.get_shape()

        def __getitem__(self, rows):
            read.append(self.stored[rows].numel())
            return self.stored[rows]

    monkeypatch.setattr(identity_in_files, "_sample", lambda stored, name: original(Watched(stored), name))
    settings = ModelSettings(name=str(tiny_model_dir))
    identity = load(settings).identity
    check_same_model_in_files(identity, settings, "modules.json")
    assert 0 < max(read) < 64 + 64  # the first 64 values, up to the end of a row


def test_an_adapter_tells_all_but_its_weights(tiny_model_dir: Path, tmp_path: Path):
    """An adapter's weights are known once it is merged; its start model and its template are known before."""
    tokenizer = make_tiny_tokenizer()
    adapted = get_peft_model(make_tiny_network(len(tokenizer)), LoraConfig(target_modules=["q_proj"], r=2))
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_model_dir)
    adapted.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = ModelSettings(name=str(tmp_path))
    identity = load(settings).identity
    check_same_model_in_files(identity, settings, "modules.json")
    assert refused_changes(identity, settings) == ["architecture", "parameter_count", "chat_template_hash"]


def test_float16_may_change_the_fingerprint(tiny_model_dir: Path):
    """Rounded to float16 first, a value may round to another bfloat16, so the files do not tell."""
    settings = ModelSettings(name=str(tiny_model_dir), dtype="float16")
    assert "weights_fingerprint" not in refused_changes(load(settings).identity, settings)


def test_a_tie_that_the_checkpoint_breaks(tmp_path: Path):
    """If the configuration ties two weights that the checkpoint has apart, only loading tells how many there are."""
    tokenizer = make_tiny_tokenizer()
    kind, extra = SUPPORTED["llama"]
    make_architecture(kind, {**extra, "tie_word_embeddings": True}, len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = torch.ones_like(weights["model.embed_tokens.weight"])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = ModelSettings(name=str(tmp_path))
    identity = load(settings).identity
    check_same_model_in_files(identity, settings, "modules.json")
    assert refused_changes(identity, settings) == ["architecture", "chat_template_hash"]


def test_broken_weights_are_left_to_loading(tmp_path: Path, tiny_chat_model):
    """A file of weights that cannot be read says nothing about the identity; loading says what is wrong."""
    tiny_chat_model.model.save_pretrained(tmp_path)
    tiny_chat_model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    settings = ModelSettings(name=str(tmp_path))
    assert check_model(settings) == []
    check_same_model_in_files(tiny_chat_model.identity, settings, "modules.json")
