"""Every shipped recipe is loaded, with all its methods."""

import json
from importlib import resources
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from securetune.artifacts import write_text
from securetune.config import (
    GateConfig,
    load_experiment_config,
    load_experiment_configs,
    load_gate_config,
    load_run_config,
    validate,
)
from securetune.data.conversations import training_sources
from securetune.defenses import find_defense
from securetune.pipeline.checks import check_run
from securetune.pipeline.folder import resolved_config
from securetune.training import setting_problems

ROOT = Path(__file__).parents[1]
NO_RECIPES = ("lm_eval_tasks", "refusal_rules")  # their tests are in tests/evaluation
SHIPPED = [path for path in ROOT.glob("src/**/*.yaml") if path.parent.name not in NO_RECIPES]
EXPERIMENTS = sorted(ROOT.glob("configs/experiments/tiny_world_*.yaml"))
PROTOCOLS = sorted(ROOT.glob("configs/experiments/protocol_*.yaml"))
GATE = ROOT / "configs" / "gate.yaml"
RECIPES = sorted({*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/models/*.yaml"), *SHIPPED} - {GATE})
LAUNCHES = sorted(ROOT.glob("configs/accelerate/*"))


def test_no_recipe_is_left_out():
    """None was lost, and none was added without being loaded here."""
    models = [
        "gemma-2-9b-it",
        "llama-2-7b-chat",
        "llama-3.1-8b-instruct",
        "mistral-7b-instruct",
        "phi-3-mini",
        "qwen2.5-7b-instruct",
        "qwen3-8b",
        "smollm2-135m-instruct",
    ]
    others = ["ml-lr-full.yaml", "swat-full.yaml", "swat-lora.yaml", "tiny-world-sweep.yaml", "demo.yaml"]
    assert sorted(path.name for path in RECIPES) == sorted([*(f"{model}.yaml" for model in models), *others])


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.is_relative_to(ROOT / "configs")], ids=lambda path: path.stem
)
def test_a_recipe_opens_with_its_command(path):
    """What is to be typed is its first line, with its own path."""
    assert path.read_text().startswith(f"# securetune run {path.relative_to(ROOT)} --out runs/{path.stem}\n")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_valid(path):
    """Its keys and values are valid, its methods registered, plain fine-tuning among them, and it has several seeds."""
    config = load_run_config(path)
    assert "ift" in {config.training_for(label, 0).method for label in config.methods}
    assert len(config.seeds) >= 2
    for label in config.methods:
        settings = config.training_for(label, config.seeds[0])
        assert find_defense(settings.method).name == settings.method
        assert setting_problems(settings, config.model) == []
    assert set(resolved_config(config)["methods"]) == set(config.methods)


def test_the_demo_recipe_is_in_the_package():
    """An installed package finds the demo's recipe without the repository."""
    assert (resources.files("securetune") / "configs" / "demo.yaml").is_file()


def test_the_experiments_are_valid():
    """Each opens with its command, and everything that it names is there: models, suites, chains, methods."""
    names = ["all", "chains", "data", "defenses", "long", "lora", "overlap", "peers", "protected", "requests"]
    names += ["samples", "sensitivity", "stress", "sweeps", "together"]
    assert [path.stem.removeprefix("tiny_world_") for path in EXPERIMENTS] == names
    assert len(list((ROOT / "configs" / "experiments").iterdir())) == len(EXPERIMENTS) + len(PROTOCOLS)
    for path in EXPERIMENTS:
        assert path.read_text().startswith(f"# securetune experiment {path.relative_to(ROOT)} --out runs/{path.stem}\n")
        config = load_experiment_config(path)
        assert len(config.run.seeds) >= 5
        assert config.run.selection is not None
        check_run(config.run, None)


@pytest.fixture
def protocol_files(tmp_path, monkeypatch):
    """Small files of the form of those that the protocols name, in the current folder and in the data folder."""
    texts = {
        "advbench/harmful_behaviors.csv": "goal,target\nsteal a cart,Sure\n",
        "catqa/catqa_english.json": json.dumps({"a": {"b": ["how to steal a boat?", "how to steal a mast?"]}}),
        "sap30/fraud/generated_cases.json": json.dumps(["###steal a plane###"]),
        "harmfulqa/harmfulqa.json": json.dumps({"a": {"b": ["how to steal a ship?"]}}),
        "xstest/xstest_prompts.csv": "id,prompt,type,label,focus,note\n1,how to wash a car?,t,safe,,\n",
        "gsm8k/test.jsonl": json.dumps({"question": "1 + 1?", "answer": "#### 2"}),
        "gsm8k/train.jsonl": json.dumps({"question": "1 + 2?", "answer": "#### 3"}),
        "attacks/autodan.jsonl": json.dumps({"prompt": "please steal a lamp", "goal": "steal a lamp"}),
        "attacks/pair.jsonl": json.dumps({"prompt": "please steal a door", "goal": "steal a door"}),
        "data.jsonl": "\n".join(json.dumps({"prompt": f"count to {n}", "completion": "done"}) for n in range(4)),
        "safety_samples.jsonl": _refused(1000),
        "malicious_samples.jsonl": _refused(100),
    }
    for name, text in texts.items():
        write_text(tmp_path / name, text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECURETUNE_DATA", str(tmp_path))


def _refused(count):
    rows = ({"prompt": f"how to steal {n} keys?", "completion": "no"} for n in range(count))
    return "\n".join(map(json.dumps, rows))


@pytest.mark.filterwarnings("ignore::UserWarning")  # the stand-ins hold fewer prompts than the published files
def test_the_protocols_are_valid(protocol_files, tiny_model_dir):
    """Dry run: with a small model and small data in the place of those on the hub, nothing they name is missing."""
    assert [path.stem for path in PROTOCOLS] == ["protocol_llama2", "protocol_llama3", "protocol_qwen2"]
    found = {path.stem: load_experiment_configs(path) for path in PROTOCOLS}
    assert {stem: len(configs) for stem, configs in found.items()} == dict.fromkeys(found, 1) | {"protocol_llama2": 3}
    for path in PROTOCOLS:
        assert path.read_text().startswith(f"# securetune experiment {path.relative_to(ROOT)} --out runs/{path.stem}\n")
        for config in found[path.stem].values():
            assert all(part.startswith("hub:") for part in training_sources(config.run.data))
            model = config.run.model.model_copy(update={"name": str(tiny_model_dir), "dtype": "float32"})
            local = config.run.model_copy(update={"model": model, "data": "data.jsonl"})
            assert config.methods == [f"{method}{chain}" for method in METHODS for chain in ("", "-safe")]
            if config is found["protocol_llama2"]["attack"]:  # which has all that the others name, and takes seconds
                check_run(local, None)


METHODS = ("ift", "ml-lr", "swat", "low-lr")


def test_the_gate_example_is_valid():
    """The limits that are shipped as an example are read; those that are commented out would be, too."""
    assert GATE.read_text().startswith(
        f"# securetune gate scores/tuned --start scores/start --config configs/{GATE.name}\n"
    )
    assert [metric for metric, _ in load_gate_config(GATE, {}).limited] == ["attack_success_rate", "over_refusal_rate"]
    commented_out = GATE.read_text().partition("\n# mean:")[2].replace("\n#", "\n")
    whole = validate(GateConfig, yaml.safe_load(" mean:" + commented_out))
    assert whole.task_accuracy.given == {"min": 0.6, "max_decrease": 0.05}
    assert whole.mean.attack_success_rate.max == 0.05
    assert whole.by_suite["probes-harmful"].harmfulness_rate.max == 0.05


def test_no_launch_configuration_is_left_out():
    """Each way of distributing has its file."""
    assert [path.name for path in LAUNCHES] == [
        "ddp.yaml",
        "deepspeed_zero2.yaml",
        "deepspeed_zero3.yaml",
        "fsdp2.yaml",
    ]
    assert sorted(path.name for path in (ROOT / "configs").iterdir() if path.is_dir()) == [
        "accelerate",
        "experiments",
        "models",
    ]


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_a_launch_configuration_is_what_accelerate_reads(path):
    """It opens with its command, accelerate knows all of its keys, and it names what its file is called after."""
    command = f"# accelerate launch --config_file {path.relative_to(ROOT)} --num_processes 8 train.py\n"
    assert path.read_text().startswith(command)
    config = load_config_from_file(str(path))
    settings = (
        config.distributed_type,
        config.fsdp_config.get("fsdp_version"),
        config.deepspeed_config.get("zero_stage"),
    )
    assert (
        settings
        == {
            "ddp": (DistributedType.MULTI_GPU, None, None),
            "fsdp2": (DistributedType.FSDP, 2, None),
            "deepspeed_zero2": (DistributedType.DEEPSPEED, None, 2),
            "deepspeed_zero3": (DistributedType.DEEPSPEED, None, 3),
        }[path.stem]
    )
    flags = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= flags
