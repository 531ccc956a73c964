"""QLoRA: adapters on a model whose weights are packed into 4 bits."""

import copy
import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import SUPPORTED, make_architecture
from datasets import Dataset
from peft import LoraConfig, PeftModel
from secure_script import LORA, SHORT, UPPER
from short_training import make_manifest, make_rows
from tiny_models import make_tiny_tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
)

from securetune import SecureSFTConfig, SecureSFTTrainer
from securetune.config import AnalyzeConfig, ModelSettings, RunConfig, TrainingSettings
from securetune.data.conversations import read_conversations
from securetune.errors import ArtifactError, ConfigError, InputError
from securetune.models import load, map_modules
from securetune.pipeline.checks import check_run
from securetune.pipeline.single_stages import analyze_model
from securetune.progress import silent
from securetune.training.checks import check_training
from securetune.training.phase_groups import freeze_all_but
from securetune.training.robust_choice import check_made_for

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (no GPU is needed)"
)
PACKED = torch.uint8


@pytest.fixture(scope="module")
def wide_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama as wide as one block of 64 weights that share a scale: bitsandbytes' CPU path needs that."""
    folder, tokenizer = tmp_path_factory.mktemp("wide"), make_tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, pad_token_id=0, bos_token_id=2,
        eos_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quantized(folder: Path) -> Any:
    """Load in 4 bits, on the GPU if there is one."""
    return AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
        dtype=torch.float32,
    )


def trainer_of(folder: Path, out: Path, robust_modules: Any, **settings: Any) -> SecureSFTTrainer:
    on_cpu = {"use_cpu": not torch.cuda.is_available()}
    return SecureSFTTrainer(
        quantized(folder),
        SecureSFTConfig(str(out), robust_modules=robust_modules, **{**SHORT, **on_cpu, **settings}),
        train_dataset=Dataset.from_list(make_rows()),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(**LORA),
    )


def adapters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" in name}


def norm(values: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(value.detach().double().square().sum()) for value in values))


@needs_bitsandbytes
@pytest.mark.parametrize("method", ["swat", "ml-lr"])
def test_adapters_on_packed_weights_are_trained(method: str, wide_model_dir: Path, tmp_path: Path):
    """With the manifest of the model in full precision: packed weights stay, the phases train what they should."""
    manifest = make_manifest(load(str(wide_model_dir)), UPPER)
    starts: list[dict[str, torch.Tensor]] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            starts.append(adapters(model))

    steps = {"warmup_phase_steps": 4} if method == "swat" else {}
    trainer = trainer_of(wide_model_dir, tmp_path, manifest, method=method, **steps)
    trainer.add_callback(Watch())
    packed = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.dtype == PACKED}
    assert len(packed) == 14
    trainer.train()
    assert all(torch.equal(trainer.model.get_parameter(name), values) for name, values in packed.items())
    end = adapters(trainer.model)
    assert all(not torch.equal(end[name], starts[0][name]) for name in end)
    if method == "swat":
        assert {name.split(".")[4] for name in end if not torch.equal(starts[0][name], starts[1][name])} == {"1"}
    trainer.save_model(str(tmp_path / "saved"))
    again = PeftModel.from_pretrained(quantized(wide_model_dir), str(tmp_path / "saved"))
    ids = torch.tensor([[2, 5, 8, 9, 10, 6]], device=again.device)
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        assert torch.allclose(again.eval()(input_ids=ids).logits, expected, atol=1e-2 * float(expected.abs().max()))


@needs_bitsandbytes
def test_norms_and_counts_are_those_of_the_weights_not_of_their_packing(wide_model_dir: Path, tmp_path: Path):
    """Update norms are relative to the unpacked weights, and the module map counts weights, not bytes."""
    trainer = trainer_of(wide_model_dir, tmp_path, UPPER, method="ml-lr")
    plain = {module.name: module for module in map_modules(load(str(wide_model_dir)).model)}
    assert {m.name: m.parameter_count for m in trainer._modules} == {n: m.parameter_count for n, m in plain.items()}
    trainer.train()
    logged = [row["update_norm/robust"] for row in trainer.state.log_history if "update_norm/robust" in row][-1]
    model = load(str(wide_model_dir)).model
    layers = [trainer.model.get_submodule(f"base_model.model.{name}") for name in UPPER]
    change = norm([layer.get_delta_weight("default") for layer in layers])
    assert logged == pytest.approx(change / norm([plain[name].weight_in(model) for name in UPPER]), rel=0.05)


@needs_bitsandbytes
def test_a_quantized_model_is_not_analyzed(wide_model_dir: Path, tmp_path: Path):
    """`auto` says where the analysis is to be made instead."""
    with pytest.raises(ConfigError, match="those of a quantized model are packed"):
        trainer_of(wide_model_dir, tmp_path, "auto")


class PackedLinear(nn.Linear):
    """Stands for a linear map of bitsandbytes: two weights a byte, in one column."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta")
        self.weight = nn.Parameter(torch.zeros(plain.weight.numel() // 2, 1, dtype=PACKED), requires_grad=False)


def packed(model: nn.Module) -> nn.Module:
    for path, holder in list(model.named_modules()):
        if isinstance(holder, nn.Linear) and ".layers." in f".{path}.":
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, PackedLinear(holder))
    return model


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_packed_weights_are_mapped_like_plain_ones(name: str):
    """The same modules, parts of fused weights included, with the same counts; what is packed can be frozen."""
    model = make_architecture(*SUPPORTED[name], vocab_size=48)
    expected = [(m.name, m.type, m.parameter_count, m.part) for m in map_modules(model)]
    found = map_modules(packed(model))
    assert [(m.name, m.type, m.parameter_count, m.part) for m in found] == expected
    freeze_all_but(model, frozenset({"lm_head.weight"}))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]


@pytest.fixture
def packed_folder(wide_model_dir: Path, tmp_path: Path) -> Path:
    """The same model with the configuration of a quantized one: all that can be read before weights are loaded."""
    folder = Path(shutil.copytree(wide_model_dir, tmp_path / "packed"))
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_rounded_weights_are_not_trained_in_full(packed_folder: Path, tmp_path: Path) -> None:
    """`train` refuses all parameters of a quantized model before it loads it; adapters are no problem there."""
    model, data = ModelSettings(name=str(packed_folder)), read_conversations("tiny-world")
    with pytest.raises(InputError, match=r"tune: full cannot train rounded weights.*Use tune: lora"):
        check_training(TrainingSettings(method="ift", tune="full"), model, data, tmp_path / "out")
    check_training(TrainingSettings(method="ift", tune="lora"), model, data, tmp_path / "out")


def test_packed_weights_are_not_perturbed(packed_folder: Path, tmp_path: Path) -> None:
    """`analyze` and `run` refuse a quantized model before they load it, and say what to do instead."""
    wanted = r"packed: is quantized, and packed weights cannot be perturbed.*model in full precision"
    model = ModelSettings(name=str(packed_folder))
    with pytest.raises(InputError, match=wanted):
        analyze_model(AnalyzeConfig(model=model), tmp_path / "robustness.json", silent)
    run = RunConfig(model=model, data="tiny-world")
    with pytest.raises(InputError, match=wanted):
        check_run(run, None)


def test_a_manifest_of_the_model_in_full_precision_fits_its_packed_twin(wide_model_dir: Path) -> None:
    """Weights are not compared where they are packed; architecture and chat template still are."""
    chat = load(str(wide_model_dir))
    manifest = make_manifest(chat, ["L0.q_proj"])
    others = chat.identity.model_copy(update={"weights_fingerprint": "packed", "parameter_count": 7})
    packed = copy.copy(chat.model)
    packed.is_quantized = True
    check_made_for(manifest, others, packed, "the manifest")
    with pytest.raises(ArtifactError, match="the manifest"):
        check_made_for(manifest, others, chat.model, "the manifest")
    with pytest.raises(ArtifactError, match="the manifest"):
        check_made_for(manifest, others.model_copy(update={"chat_template_hash": "x"}), packed, "the manifest")
