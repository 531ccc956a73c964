"""Every shipped recipe is loaded, with all its methods."""

from importlib import resources
from pathlib import Path

import pytest

from securetune.config import load_run_config
from securetune.defenses import find_defense
from securetune.pipeline.folder import resolved_config
from securetune.training import setting_problems

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("src/**/*.yaml")])


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
