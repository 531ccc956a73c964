"""A manifest in the words of PEFT, axolotl and LLaMA-Factory selects exactly the manifest's parameters."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from architectures import SUPPORTED, make_architecture
from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
from saved_models import save_model, write_manifest
from tiny_models import make_tiny_network, make_tiny_tokenizer
from typer.main import get_command
from typer.testing import CliRunner

from securetune.cli import app
from securetune.config import ExportConfig, ModelSettings, TrainingSettings
from securetune.errors import ConfigError, InputError
from securetune.models import load, load_skeleton, map_modules
from securetune.pipeline.exporting import TOOLS, export
from securetune.pipeline.exporting.axolotl import learning_rates, name_patterns, unfrozen_names
from securetune.pipeline.exporting.llama_factory import FreezeTuning, freeze_tuned_names, nearest_freeze_tuning
from securetune.training.adapters import add_adapters

LAYERS = 13
"""So many that there is a layer 1 and a layer 11."""


def is_in_layer_1(module):
    return module.layer == 1 and module.type in ("Q", "Up")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory):
    """Folder of a random Llama of 13 layers, the network, and its identity."""
    folder = tmp_path_factory.mktemp("deep")
    network = make_tiny_network(len(make_tiny_tokenizer()), layers=LAYERS)
    return folder, network, save_model(folder, network)


@pytest.fixture
def export_deep(deep, tmp_path: Path):
    """Export for the model of 13 layers; returns what was exported and the file's text."""
    folder, network, identity = deep

    def do(tool, is_robust=is_in_layer_1, **training):
        manifest = write_manifest(tmp_path / "robust_modules.json", network, identity, is_robust)
        config = ExportConfig(model=ModelSettings(name=str(folder)), training=TrainingSettings(**training))
        exported = export(config, manifest, tool, tmp_path / "exported")
        assert (tmp_path / "exported").read_text() == exported.text
        return exported

    return do


@pytest.mark.parametrize(
    ("part", "instead"),
    [("before", "securetune.prepare_data"), ("after", "securetune patch"), ("generation", "evaluat")],
)
def test_what_is_chained_is_no_part_of_an_export(part, instead, export_deep):
    """A chain would be lost in another tool, so it is refused with where it goes instead."""
    step = {"before": "safety-mix", "after": "wise-ft", "generation": "ptst"}[part]
    with pytest.raises(InputError, match=rf"training\.{part}: is not part of an export\. .*{instead}"):
        export_deep("peft", method="swat", **{part: [step]})


def names_in_layer_1(network):
    return {
        name
        for name, _ in network.named_parameters()
        if ".layers.1.self_attn.q_proj." in name or ".layers.1.mlp.up_proj." in name
    }


def test_peft_adapts_the_manifests_modules(export_deep, deep, tmp_path):
    """PEFT reads the file and puts adapters on exactly the manifest's modules, layer 11 not among them."""
    export_deep("peft", tune="lora")
    (tmp_path / "exported").rename(tmp_path / "adapter_config.json")
    config = LoraConfig.from_pretrained(tmp_path)
    wrapped = get_peft_model(load_skeleton(ModelSettings(name=str(deep[0]))), config)
    adapted = {name for name, module in wrapped.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"}
    assert config.r == 8


def test_the_second_run_with_peft_begins_where_the_first_ended(export_deep, deep, tmp_path):
    """What the warm-up's adapter learned fits the adapter on all modules, as the notes say: the same logits."""
    export_deep("peft", tune="lora")
    (tmp_path / "exported").rename(tmp_path / "adapter_config.json")
    first = get_peft_model(load(str(deep[0])).model, LoraConfig.from_pretrained(tmp_path))
    for name, parameter in first.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    first.save_pretrained(tmp_path / "run1")
    second = load(str(deep[0])).model
    second = add_adapters(second, map_modules(second), TrainingSettings(tune="lora"), "x")
    assert not set_peft_model_state_dict(second, load_peft_weights(str(tmp_path / "run1"))).unexpected_keys
    prompt = torch.arange(4, 12)[None]
    torch.testing.assert_close(second(prompt).logits, first(prompt).logits)
    assert (first(prompt).logits - deep[1](prompt).logits).abs().max() > 0.01


def test_axolotl_leaves_the_manifests_parameters_unfrozen(export_deep, deep):
    """The anchored patterns match the two weights of layer 1 and nothing of layers 10 to 12."""
    exported = export_deep("axolotl", method="swat")
    patterns = yaml.safe_load(exported.text)["unfrozen_parameters"]
    wanted = {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"}
    assert set(unfrozen_names(patterns, deep[1])) == set(exported.parameters) == wanted
    assert all(pattern.startswith("^") and pattern.endswith("$") for pattern in patterns)


def test_axolotl_patterns_under_lora(export_deep, deep):
    """Under LoRA the patterns match the adapters' parameters, which those for all parameters do not match at all."""
    plain = yaml.safe_load(export_deep("axolotl").text)["unfrozen_parameters"]
    content = yaml.safe_load(export_deep("axolotl", tune="lora").text)
    skeleton = load_skeleton(ModelSettings(name=str(deep[0])))
    wrapped = add_adapters(skeleton, map_modules(skeleton), TrainingSettings(tune="lora"), "x")
    matched = unfrozen_names(content["unfrozen_parameters"], wrapped)
    assert set(matched) == {name for name in names_in_layer_1(wrapped) if ".lora_" in name}
    assert len(matched) == 4
    assert unfrozen_names(plain, wrapped) == []
    assert content["lora_target_modules"] == sorted(wrapped.peft_config["default"].target_modules)


def test_a_dot_in_an_axolotl_pattern_is_literal_already(deep):
    """A pattern with an escaped dot matches nothing in axolotl, which escapes every dot itself."""
    assert name_patterns(["a.1.b", "a.11.b", "c"]) == ["^a.(1|11).b$", "^c$"]
    assert unfrozen_names([r"^model\.layers\.1\.mlp\.up_proj\.weight$"], deep[1]) == []


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_axolotl_learning_rates(export_deep, deep, tune):
    """The manifest's parameters get the base rate and all others, embeddings and norms too, a tenth of it."""
    exported = export_deep("axolotl", method="ml-lr", tune=tune, learning_rate=1e-3)
    content = yaml.safe_load(exported.text)
    network = load_skeleton(ModelSettings(name=str(deep[0])))
    if tune == "lora":
        network = add_adapters(network, map_modules(network), TrainingSettings(tune="lora"), "x")
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    rates = learning_rates(network, trained, content["learning_rate"], content["lr_groups"])
    robust = names_in_layer_1(network) & set(trained)
    assert robust == set(exported.parameters)
    assert rates == {name: 1e-3 if name in robust else 1e-4 for name in trained}


def test_axolotl_groups_by_text(deep):
    """A group's text `layers.1.` takes no parameter of layer 11; without its last dot it would."""
    trained = [name for name, _ in deep[1].named_parameters()]
    careful, careless = (
        learning_rates(deep[1], trained, 1.0, [{"name": "robust", "modules": [text], "lr": 2.0}])
        for text in ("model.layers.1.", "model.layers.1")
    )
    assert {name.split(".")[2] for name, rate in careful.items() if rate == 2.0} == {"1"}
    assert {name.split(".")[2] for name, rate in careless.items() if rate == 2.0} == {"1", "10", "11", "12"}


def test_axolotl_cannot_give_norms_another_rate(export_deep):
    """Norms that belong to the robust set are refused, because axolotl trains them at the base rate."""
    with pytest.raises(ConfigError, match=r"another learning rate.*norms and biases at `learning_rate`"):
        export_deep("axolotl", method="ml-lr", other_parameters="robust")


def test_frozen_parameters_stay_frozen(export_deep, deep):
    """With `other_parameters: frozen`, learning rates come with patterns that leave out embeddings and norms."""
    content = yaml.safe_load(export_deep("axolotl", method="ml-lr", other_parameters="frozen").text)
    unfrozen = unfrozen_names(content["unfrozen_parameters"], deep[1])
    assert len(unfrozen) == 7 * LAYERS
    assert all("_proj.weight" in name for name in unfrozen)


@pytest.mark.parametrize(
    ("is_robust", "settings"),
    [
        (lambda module: module.layer >= 10, FreezeTuning(3, ("mlp", "self_attn"))),
        (lambda module: module.layer < 2 and module.type in ("Gate", "Up", "Down"), FreezeTuning(-2, ("mlp",))),
    ],
)
def test_llamafactory_freeze_tuning(export_deep, deep, is_robust, settings):
    """Whole blocks of the last or the first layers are expressed as freeze tuning."""
    exported = export_deep("llamafactory", is_robust)
    content = yaml.safe_load(exported.text)
    assert content["freeze_trainable_layers"] == settings.layers
    assert content["freeze_trainable_modules"] == ",".join(settings.modules)
    wanted = {module.weight_name for module in map_modules(deep[1]) if is_robust(module)}
    assert freeze_tuned_names(deep[1], settings) == wanted == set(exported.parameters)


def test_llamafactory_refuses_what_it_cannot_express(export_deep, tmp_path):
    """Single projections are no whole block: refused in a sentence with the nearest set, and no file is written."""
    with pytest.raises(ConfigError, match=r"freeze_trainable_layers: -2 with freeze_trainable_modules: mlp, lacks"):
        export_deep("llamafactory", lambda module: module.layer < 2 and module.type == "Up")
    assert not (tmp_path / "exported").exists()


def test_llamafactory_counts_from_the_end(deep):
    """In LLaMA-Factory's settings 1 is the last layer and -1 the first; neither is layer 1 or 10."""
    for count, layer in ((1, LAYERS - 1), (-1, 0)):
        names = freeze_tuned_names(deep[1], FreezeTuning(count, ("mlp",)))
        assert {name.split(".")[2] for name in names} == {str(layer)}
        assert nearest_freeze_tuning(deep[1], names) == FreezeTuning(count, ("mlp",))


def test_llamafactory_adapters(export_deep):
    """Under LoRA any manifest can be expressed, by the paths of its modules."""
    exported = export_deep("llamafactory", tune="lora")
    assert yaml.safe_load(exported.text)["lora_target"] == "model.layers.1.mlp.up_proj,model.layers.1.self_attn.q_proj"
    assert len(exported.parameters) == 4


@pytest.mark.parametrize("tool", ["peft", "axolotl", "llamafactory"])
def test_the_warm_up_is_a_run_of_its_own(export_deep, tool):
    """What is exported for a warm-up says that there are two complete runs, with their commands."""
    exported = export_deep(tool, tune="lora")
    notes = " ".join(exported.notes)
    assert "wo complete runs" in notes
    assert {"peft": "python YOUR_SCRIPT.py", "axolotl": "axolotl train", "llamafactory": "llamafactory-cli train"}[
        tool
    ] in notes
    if tool != "peft":
        comments = " ".join(line[2:] for line in exported.text.splitlines() if line.startswith("# "))
        assert comments == notes


@pytest.mark.parametrize(
    ("tool", "training", "message"),
    [
        ("peft", {"tune": "full"}, "peft: trains adapters"),
        ("peft", {"tune": "lora", "method": "ml-lr"}, "holds no learning rates"),
        ("llamafactory", {"method": "ml-lr"}, "no learning rates by module"),
        ("axolotl", {"method": "ift"}, "uses no manifest"),
        ("axolotl", {"warmup_phase_steps": 0}, "there is nothing to export"),
        ("unsloth", {"method": "nothing"}, r'"unsloth" is unknown. Tools: peft, axolotl, llamafactory(.|\n)*"nothing"'),
    ],
)
def test_what_cannot_be_exported(export_deep, tool, training, message):
    """What a tool has no words for is refused in a sentence; several mistakes together."""
    with pytest.raises(InputError, match=message):
        export_deep(tool, **training)


@pytest.mark.parametrize("name", SUPPORTED)
def test_axolotl_patterns_for_every_architecture(name, tmp_path):
    """For each known architecture the patterns of a layer match exactly its projections, fused and experts' too."""
    network = make_architecture(*SUPPORTED[name], vocab_size=len(make_tiny_tokenizer()))
    identity = save_model(tmp_path / "model", network)
    manifest = write_manifest(tmp_path / "robust.json", network, identity, lambda module: module.layer == 1)
    config = ExportConfig(model=ModelSettings(name=str(tmp_path / "model")))
    exported = export(config, manifest, "axolotl", tmp_path / "exported.yaml")
    weights = {module.weight_name for module in map_modules(network) if module.layer == 1}
    extra = set(exported.parameters) - weights
    assert weights <= set(exported.parameters)
    assert all(parameter.endswith("bias") for parameter in extra)


def test_adapters_on_experts(tmp_path):
    """PEFT gets the experts' parameters and adapts exactly the manifest's; the tools that cannot say it are refused."""
    network = make_architecture(*SUPPORTED["mixtral"], vocab_size=len(make_tiny_tokenizer()))
    identity = save_model(tmp_path / "model", network)
    manifest = write_manifest(tmp_path / "robust.json", network, identity, lambda module: module.layer == 1)
    lora = TrainingSettings(method="swat", tune="lora")
    config = ExportConfig(model=ModelSettings(name=str(tmp_path / "model")), training=lora)
    exported = export(config, manifest, "peft", tmp_path / "peft.json")
    experts = [f"model.layers.1.mlp.experts.{name}" for name in ("down_proj", "gate_up_proj")]
    assert json.loads(exported.text)["target_parameters"] == experts
    assert len(exported.parameters) == 2 * (4 + 2)
    for tool in ("axolotl", "llamafactory"):
        with pytest.raises(ConfigError, match=f"{tool}: adapters on experts cannot be exported"):
            export(config, manifest, tool, tmp_path / "other.yaml")


def test_help_names_every_tool():
    """The help names the tools that there are."""
    parameters = {parameter.name: parameter for parameter in get_command(app).commands["export"].params}
    assert parameters["to"].metavar == "|".join(TOOLS)


def test_biases_at_another_rate_are_refused(tmp_path):
    """A model whose robust modules have biases, as Qwen2, has no exact learning-rate groups in axolotl; LoRA has."""
    network = make_architecture(*SUPPORTED["qwen2"], vocab_size=len(make_tiny_tokenizer()))
    identity = save_model(tmp_path / "model", network)
    manifest = write_manifest(tmp_path / "robust.json", network, identity, is_in_layer_1)
    config = ExportConfig(model=ModelSettings(name=str(tmp_path / "model")), training=TrainingSettings(method="ml-lr"))
    with pytest.raises(ConfigError, match=r"1 of \d+ parameters would get another.*q_proj\.bias.*Give --tune lora"):
        export(config, manifest, "axolotl", tmp_path / "out.yaml")
    lora = config.model_copy(update={"training": TrainingSettings(method="ml-lr", tune="lora")})
    assert len(export(lora, manifest, "axolotl", tmp_path / "out.yaml").parameters) == 4


def test_the_command(deep, tmp_path):
    """`securetune export` prints the count and where the file is; with `--json` one document."""
    folder, network, identity = deep
    manifest = write_manifest(tmp_path / "robust.json", network, identity, is_in_layer_1)
    words = ["export", str(manifest), "--model", str(folder), "--to", "peft", "--out", str(tmp_path / "out.json")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0
    assert "2 targets match 4 parameters" in shown.stdout
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert len(document["parameters"]) == 4
    assert json.loads(document["text"]) == json.loads((tmp_path / "out.json").read_text())
