"""Every shipped recipe is loaded, with all its methods."""

from importlib import resources
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from securetune.config import GateConfig, load_experiment_config, load_gate_config, load_run_config, validate
from securetune.defenses import find_defense
from securetune.pipeline.checks import check_run
from securetune.pipeline.folder import resolved_config
from securetune.training import setting_problems

ROOT = Path(__file__).parents[1]
SHIPPED = [path for path in ROOT.glob("src/**/*.yaml") if path.parent.name != "lm_eval_tasks"]  # those have a test file
EXPERIMENTS = sorted(ROOT.glob("configs/experiments/*.yaml"))
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
    assert [path.stem for path in EXPERIMENTS] == ["tiny_world_all", "tiny_world_chains", "tiny_world_data", "tiny_world_defenses"]
    for path in EXPERIMENTS:
        assert path.read_text().startswith(f"# securetune experiment {path.relative_to(ROOT)} --out runs/{path.stem}\n")
        config = load_experiment_config(path)
        assert len(config.run.seeds) >= 5
        assert config.run.selection is not None
        check_run(config.run, None)


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
