"""A plan says what a configuration would do, as it will be done, without any weights."""

import json
import resource
from pathlib import Path

import pytest
import torch
from architectures import BY_STRUCTURE, SUPPORTED, make_architecture
from saved_models import save_model, write_manifest
from tiny_models import make_tiny_network, make_tiny_tokenizer
from transformers import LlamaConfig
from typer.testing import CliRunner

from securetune.cli import app
from securetune.cli.planned import data_sentence, example_text, shown_layers
from securetune.config import ModelSettings, RunConfig, TrainConfig, TrainingSettings
from securetune.errors import InputError
from securetune.models import load_skeleton, map_modules, render_conversation
from securetune.pipeline.planning import plan
from securetune.pipeline.planning.example import segments
from securetune.pipeline.planning.memory import estimate_memory
from securetune.pipeline.planning.module_map import map_by_type
from securetune.training import train

SHORT = {"num_train_epochs": 1.0, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_phase_steps": 1}
SHORT |= {"warmup_steps": 0}
MESSAGES = [
    {"role": "user", "content": "how do I wash a car ?"},
    {"role": "assistant", "content": "sure first take the car"},
    {"role": "user", "content": "how do I sell a boat ?"},
    {"role": "assistant", "content": "sure find"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten conversations of two answers each."""
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    path.write_text("".join(json.dumps({"messages": MESSAGES}) + "\n" for _ in range(10)))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """Folder of a random Llama, and a manifest with its second layer."""
    folder = tmp_path_factory.mktemp("tiny")
    network = make_tiny_network(len(make_tiny_tokenizer()))
    identity = save_model(folder / "model", network)
    return folder / "model", write_manifest(folder / "robust.json", network, identity, lambda module: module.layer == 1)


def config_for(tiny, data, **settings):
    training = TrainingSettings(**{**SHORT, "modules": str(tiny[1]), **settings})
    return TrainConfig(model=ModelSettings(name=str(tiny[0])), data=str(data), training=training)


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("method", ["ift", "ml-lr", "swat"])
def test_the_plan_is_what_training_does(tiny, data, tmp_path, method, tune):
    """Phases, steps, groups, rates and numbers of parameters are those of the training's own record."""
    config = config_for(tiny, data, method=method, tune=tune)
    planned = plan(config).trainings[0]
    done = train(config.training, config.model, config.data, tmp_path / "out")
    assert [(phase.name, phase.steps) for phase in planned.phases] == [
        (phase.name, phase.steps) for phase in done.phases
    ]
    for before, after in zip(planned.phases, done.phases, strict=True):
        assert [(group.name, group.parameter_count) for group in before.groups] == [
            (group.name, group.parameter_count) for group in after.groups
        ]
        rates = [group.learning_rate for group in before.groups]
        assert rates == pytest.approx([group.learning_rate for group in after.groups])


def test_data_counts_are_those_of_training(tiny, data, tmp_path):
    """Rows, cut ones and tokens are counted as training counts them."""
    config = config_for(tiny, data, method="ift", max_length=20)
    done = train(config.training, config.model, config.data, tmp_path / "out")
    planned = plan(config)
    assert planned.data.cut_rows == 10
    assert (planned.data.rows, planned.data.tokens, planned.data.answer_tokens) == (
        done.data.rows,
        done.data.tokens,
        done.data.answer_tokens,
    )
    assert planned.data.shapes == done.data.shapes == {"messages": 10}
    assert data_sentence(planned).startswith("Data: 10 conversations, recognised as messages, give 10 rows; 10 are cut")
    planned.data.shapes["alpaca"] = 1000
    assert "recognised as 10 messages and 1,000 alpaca, give" in data_sentence(planned)
    assert any("were cut" in note for note in planned.notes)


def test_a_split_that_the_search_is_still_to_make(tiny, data):
    """Without a manifest the groups have the target's share of the projections, and a note says so."""
    model = ModelSettings(name=str(tiny[0]))
    config = TrainConfig(model=model, data=str(data), training=TrainingSettings(method="ml-lr", **SHORT))
    planned = plan(config)
    robust, rest = planned.trainings[0].phases[0].groups
    projections = sum(kind.parameter_count for kind in planned.modules)
    assert robust.parameter_count == round(0.5 * projections)
    assert robust.parameter_count + rest.parameter_count == planned.parameter_count
    assert planned.trainings[0].robust_modules is None
    assert "known after the search only (ml-lr); it aims at 50%" in planned.notes[-1]


def test_a_whole_run_is_planned(tiny, data):
    """Every method of a recipe has its entry; the search's target share is the recipe's."""
    config = RunConfig(
        model=ModelSettings(name="tiny-world"),
        data="tiny-world",
        training=TrainingSettings(max_steps=20),
        methods={"ift": {}, "slow": {"method": "ml-lr", "learning_rate_ratio": 0.0}, "swat": {"tune": "lora"}},
        search={"target_fraction": 0.25},
        seeds=(0, 1),
    )
    planned = plan(config)
    assert {training.label: [phase.name for phase in training.phases] for training in planned.trainings} == {
        "ift": ["main"],
        "slow": ["main"],
        "swat": ["warmup", "main"],
    }
    assert [training.target_fraction for training in planned.trainings] == [None, 0.25, 0.25]
    assert planned.seeds == 2
    assert planned.config["methods"]["slow"] == {"method": "ml-lr", "learning_rate_ratio": 0.0}


def test_all_mistakes_together(tiny, data, tmp_path):
    """Mistakes in model, data, method and settings come as one list with exit status 2, as with `run`."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {name: nowhere}\ndata: nothing.jsonl\nmethods: {swap: {}, ift: {lr_scheduler_type: cos}}\n"
    )
    planned, done = (
        CliRunner().invoke(app, words)
        for words in (["plan", str(recipe)], ["run", str(recipe), "--out", str(tmp_path / "r")])
    )
    assert planned.exit_code == done.exit_code == 2
    assert planned.stderr == done.stderr
    assert all(word in planned.stderr for word in ("nowhere", "nothing.jsonl", '"swap"', '"cos"'))
    assert planned.stdout == ""


def test_mistakes_that_only_the_model_shows(data, tmp_path):
    """Dropout for experts' adapters and a warm-up as long as its phase are refused for each method by its label."""
    network = make_architecture(*SUPPORTED["mixtral"], vocab_size=len(make_tiny_tokenizer()))
    save_model(tmp_path / "model", network)
    config = RunConfig(
        model=ModelSettings(name=str(tmp_path / "model")),
        data=str(data),
        training=TrainingSettings(num_train_epochs=0.1),
        evaluation={"suites": ["probes-harmful"], "judges": ["keywords-shallow"]},
        methods={
            "short": {"method": "ift"},
            "adapters": {"method": "ift", "tune": "lora", "warmup_steps": 0, "lora": {"dropout": 0.1}},
        },
    )
    with pytest.raises(InputError) as caught:
        plan(config)
    assert any(problem.startswith("methods.short: warmup_steps") for problem in caught.value.problems)
    assert any(problem.startswith("methods.adapters: lora.dropout") for problem in caught.value.problems)


def test_a_large_model_is_planned_without_its_memory(data, tmp_path):
    """A model shaped like Llama 8B is planned, with its memory for full tuning, in less than a gigabyte."""
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = LlamaConfig(vocab_size=128256, num_key_value_heads=8, **shape)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "weights.safetensors").touch()
    index = {"weight_map": {"model.embed_tokens.weight": "weights.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    planned = plan(TrainConfig(model=ModelSettings(name=str(tmp_path)), data=str(data)))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert planned.parameter_count == 8_030_261_248
    main = planned.trainings[0].phases[-1].memory
    assert main.weights + main.gradients + main.optimizer == 16 * planned.parameter_count
    assert planned.trainings[0].phases[0].memory.total < main.total
    assert after - before < 1_000_000  # kilobytes; the weights alone would be 32 times as much


def test_memory_of_adapters_and_checkpointing():
    """Adapters save gradients and states; checkpointing saves activations; a wider batch costs just these."""
    model, config = ModelSettings(device="cpu"), load_skeleton(ModelSettings()).config
    settings = TrainingSettings(tune="lora", per_device_train_batch_size=4)
    lora = estimate_memory(config, model, settings, (1000, 10), 10, 50)
    assert (lora.weights, lora.gradients, lora.optimizer) == (4040, 40, 80)
    wider = estimate_memory(
        config, model, settings.model_copy(update={"per_device_train_batch_size": 8}), (1000, 10), 10, 50
    )
    assert wider.activations == 2 * lora.activations
    saving = settings.model_copy(update={"gradient_checkpointing": True})
    assert estimate_memory(config, model, saving, (1000, 10), 10, 50).activations < lora.activations
    half = estimate_memory(config, ModelSettings(device="cpu", dtype="bfloat16"), settings, (1000, 10), 10, 50)
    assert half.weights == 2040


def test_the_example_shows_the_loss_mask(tiny, data):
    """Both answers with their ends are trained, the questions are not, and nothing of the row is lost."""
    found = plan(config_for(tiny, data, method="ift")).example
    assert [segment.trained for segment in found] == [False, True, False, True]
    assert [segment.text.split() for segment in found if segment.trained] == [
        ["sure", "first", "take", "the", "car", "<eos>"],
        ["sure", "find", "<eos>"],
    ]
    whole = render_conversation(make_tiny_tokenizer(), MESSAGES)
    assert "".join(segment.text for segment in found).split() == whole.split()
    assert sum(segment.tokens for segment in found) == len(whole.split())


def test_packed_sequences(tiny, data, tmp_path):
    """With packing, steps are counted in sequences as training counts them; the example is still one row."""
    config = config_for(tiny, data, method="ift", packing=True)
    planned = plan(config)
    done = train(config.training, config.model, config.data, tmp_path / "out")
    assert planned.trainings[0].phases[0].steps == done.phases[0].steps
    assert planned.example == plan(config_for(tiny, data, method="ift")).example


def test_the_example_follows_loss_on(tiny, data):
    """With `loss_on: last-answer` only the last answer is marked as trained."""
    last = plan(config_for(tiny, data, method="ift", loss_on="last-answer")).example
    assert [segment.trained for segment in last] == [False, True]


def test_a_row_of_one_kind_is_one_segment():
    """A row that carries loss throughout is one segment."""
    row = {"input_ids": [7, 8], "labels": [7, 8]}
    assert [segment.tokens for segment in segments(make_tiny_tokenizer(), row)] == [2]


@pytest.mark.parametrize(
    ("name", "kind", "stored"),
    [
        ("llama", "Q", "q_proj"),
        ("phi3", "Q", "part of the fused qkv_proj"),
        ("mixtral", "Down", "down_proj, of all experts"),
        ("mixtral", "Up", "part of the fused gate_up_proj, of all experts"),
    ],
)
def test_the_module_map_says_how_a_type_is_stored(name, kind, stored):
    """Fused parts and the weights of experts are marked."""
    network = make_architecture(*SUPPORTED[name], vocab_size=20)
    found = {mapped.type: mapped for mapped in map_by_type(map_modules(network), network.num_parameters())}
    assert found[kind].stored == stored
    assert found[kind].layers == [0, 1]


@pytest.mark.parametrize("name", ["qwen2", "olmo"])
def test_a_plan_says_how_the_map_was_made(name, data, tmp_path):
    """Only for a model type that is not registered, it says that the map was made by structure."""
    network = make_architecture(*{**SUPPORTED, **BY_STRUCTURE}[name], vocab_size=len(make_tiny_tokenizer()))
    save_model(tmp_path / "model", network)
    words = ["plan", "--model", str(tmp_path / "model"), "--data", str(data), "--method", "ift"]
    shown = CliRunner().invoke(app, words).stdout
    by_structure = name == "olmo"
    assert ("Module map, by structure" in shown) == by_structure
    assert ('Note: Model type "olmo" is not registered: the module map was made by structure' in shown) == by_structure
    assert ("Module map, by registered names" in shown) != by_structure


def test_a_quantized_start_model(data, tmp_path):
    """Its rounded weights cannot be trained; with adapters, a note says what the memory estimate leaves out."""
    folder = tmp_path / "model"
    save_model(folder, make_architecture(*SUPPORTED["llama"], vocab_size=len(make_tiny_tokenizer())))
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(content))
    config = TrainConfig(model=ModelSettings(name=str(folder)), data=str(data), training={"method": "ift"})
    with pytest.raises(InputError, match=r"tune: full cannot train rounded weights.*Use tune: lora"):
        plan(config)
    lora = config.model_copy(update={"training": TrainingSettings(method="ift", tune="lora")})
    assert any("quantized, which the memory estimate leaves out" in note for note in plan(lora).notes)


def test_the_command(tiny, data):
    """`securetune plan` prints config, tables and the example in brackets; `--json` is one document with the same."""
    words = ["plan", "--model", str(tiny[0]), "--data", str(data), "--method", "swat", "--modules", str(tiny[1])]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0
    for part in ("num_train_epochs: 3.0", "Module map", "warmup", "Memory is an estimate", "[[ sure first take", "0-1"):
        assert part in shown.stdout
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert document["trainings"][0]["robust_modules"][0] == "model.layers.1.self_attn.q_proj"
    assert [segment["trained"] for segment in document["example"]] == [False, True, False, True]
    assert document["config"]["training"]["method"] == "swat"


def test_the_example_on_a_terminal(tiny, data, monkeypatch, capsys):
    """On a terminal what carries loss is bold and the rest dim; no escape sequence of the data's own gets through."""
    planned = plan(config_for(tiny, data, method="ift"))
    planned.example[0].text = "\x1b[31m[red]hidden"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    example_text(planned)
    out = capsys.readouterr().out
    assert "\x1b[1m" in out
    assert "\x1b[2m" in out
    assert "\x1b[31m" not in out
    assert "[red]hidden" in out


def test_layers_are_shown_as_ranges():
    """Neighbouring layers are one range, whatever their order."""
    assert shown_layers([5, 0, 1, 2]) == "0-2, 5"


def test_planning_loads_no_weights(tiny, data, monkeypatch):
    """A plan works where loading weights is impossible."""
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    assert plan(config_for(tiny, data, method="swat")).parameter_count > 0
