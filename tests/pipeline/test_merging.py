"""A merged model is its start model with the adapter, in one ordinary folder."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from securetune.cli import app
from securetune.config import TrainingSettings
from securetune.errors import InputError
from securetune.models import load, map_modules
from securetune.pipeline.merging import merge
from securetune.training.adapters import add_adapters


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with random values on the random tiny model, with tokenizer and card. Do not write into it."""
    folder = tmp_path_factory.mktemp("adapter") / "model"
    chat = load(str(tiny_model_dir))
    wrapped = add_adapters(chat.model, map_modules(chat.model), TrainingSettings(tune="lora"), str(tiny_model_dir))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    wrapped.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n\n# How it was tuned\n\nWith swat.\n")
    return folder


def logits_of(model):
    with torch.no_grad():
        return model(torch.arange(4, 12)[None]).logits


def test_the_merged_model_gives_the_adapters_logits(adapter, tiny_model_dir, tmp_path):
    """The merged model's logits are those of the start model with the adapter on it, and not the start model's."""
    merged = merge(adapter, tmp_path / "merged")
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    before, count = logits_of(start), start.num_parameters()
    wanted = logits_of(PeftModel.from_pretrained(start, adapter))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(found), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).abs().max() > 0.1
    assert merged.parameter_count == count
    assert not any("lora" in name for name, _ in found.named_parameters())


def test_the_folder_is_complete(adapter, tiny_model_dir, tmp_path):
    """The folder has safetensors, tokenizer, template and a card, loads by itself, and says where it comes from."""
    merge(adapter, tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert "adapter_config.json" not in names
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (adapter, tmp_path / "merged")]
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert load(str(tmp_path / "merged")).identity.architecture == "LlamaForCausalLM"
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "no safety guarantee" in card
    assert hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest() in card
    assert "## How it was tuned\n\nWith swat." in card
    assert card.count("---\n") == 2
    assert tiny_model_dir.name in card
    assert str(tiny_model_dir) not in card
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_the_precision_is_chosen(adapter, tmp_path):
    """Weights are float32, unless another precision is asked for."""
    for dtype, stored in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        merge(adapter, tmp_path / dtype, dtype)
        with safe_open(tmp_path / dtype / "model.safetensors", framework="pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {stored}  # noqa: SIM118 - not a mapping


def test_what_is_no_adapter_is_refused(tiny_model_dir, tmp_path):
    """A whole model is refused, together with an output folder that exists, and that is left as it was."""
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"out: exists already(.|\n)*holds no adapter") as caught:
        merge(tiny_model_dir, tmp_path / "out")
    assert len(caught.value.problems) == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_a_quantized_start_model_is_refused(adapter, tiny_model_dir, tmp_path):
    """An adapter on a quantized model is refused in a sentence that says what to do."""
    base = shutil.copytree(tiny_model_dir, tmp_path / "quantized")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    own = shutil.copytree(adapter, tmp_path / "own")
    content = json.loads((own / "adapter_config.json").read_text())
    (own / "adapter_config.json").write_text(json.dumps({**content, "base_model_name_or_path": str(base)}))
    with pytest.raises(InputError, match=r"quantized: is quantized.*Name the model in full precision"):
        merge(own, tmp_path / "merged")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "weights must be safetensors"),
        (lambda folder: (folder / "config.json").write_text("{}"), "holds a whole model"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not a readable adapter configuration"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "adapter cannot be read"),
    ],
)
def test_a_spoilt_adapter_is_refused(adapter, tmp_path, spoil, message):
    """An adapter that cannot be read is refused in a sentence, and nothing is written."""
    own = shutil.copytree(adapter, tmp_path / "own")
    spoil(own)
    with pytest.raises(InputError, match=message):
        merge(own, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_command(adapter, tmp_path):
    """`securetune merge` prints where the model is; with `--json` one document; a second time it refuses."""
    words = ["merge", str(adapter), "--out", str(tmp_path / "merged")]
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert document["path"] == str(tmp_path / "merged")
    assert document["dtype"] == "float32"
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    other = CliRunner().invoke(app, [*words[:3], str(tmp_path / "other")])
    assert other.stdout.splitlines()[-1] == f"Model: {tmp_path / 'other'}"
