"""A short training on the random tiny model, and a manifest with its upper layer."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from short_training import SHORT, OptionsOf, TrainShort, make_contrasts, make_manifest, make_rows
from tiny_models import make_tiny_network, make_tiny_tokenizer, tiny_prompts

from securetune.artifacts import RobustModules, TrainingResult
from securetune.config import ModelSettings, TrainingSettings
from securetune.data.conversations import Conversation
from securetune.models import load, map_modules
from securetune.training import train

gc.collect()
gc.freeze()  # accelerate collects garbage before each phase; looking at all that was imported takes half a second


@pytest.fixture(scope="session")
def rows() -> list[Conversation]:
    return make_rows()


@pytest.fixture(scope="session")
def manifest(tiny_model_dir: Path) -> RobustModules:
    """Mods_Rob: the whole of layer 1."""
    chat = load(str(tiny_model_dir))
    return make_manifest(chat, [module.name for module in map_modules(chat.model) if module.layer == 1])


@pytest.fixture(scope="session")
def train_short(tiny_model_dir: Path, rows: list[Conversation], manifest: RobustModules) -> TrainShort:
    """A function that trains the tiny model for some steps: `train_short(out, method="swat", …)`."""

    def run(out: Path, progress: Any = None, **settings: Any) -> TrainingResult:
        resolved = TrainingSettings(**{**SHORT, **settings})
        return train(resolved, ModelSettings(name=str(tiny_model_dir)), rows, out, manifest, progress)

    return run


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model as the tiny one, with other weights: what the tiny one counts as aligned from."""
    folder = tmp_path_factory.mktemp("base_model")
    tokenizer = make_tiny_tokenizer()
    make_tiny_network(len(tokenizer), seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def options_of(tmp_path_factory: pytest.TempPathFactory, base_model: str) -> OptionsOf:
    """A function that gives a method its options: `options_of("lisa", proximal=0.5)`."""
    folder = tmp_path_factory.mktemp("own_rows")
    contrasts = make_contrasts()
    refusals = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in contrasts]
    for name, rows in (("contrasts", contrasts), ("refusals", refusals)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    requests = folder / "harmful.txt"
    requests.write_text("\n".join(prompt.text for prompt in tiny_prompts("harmful", 0, 8)))
    own: dict[str, dict[str, Any]] = {
        "protected-subspace": {"prompts": str(requests), "max_new_tokens": 4, "energy": 0.7},
        "sppft": {"layers": [1, 1]},
        "lisa": {"samples": str(folder / "refusals.jsonl"), "alignment_steps": 2, "finetune_steps": 3},
        "sap": {"samples": str(folder / "contrasts.jsonl"), "perturbation": 0.1},
        "safegrad": {"samples": str(folder / "refusals.jsonl")},
        "asft": {"base": base_model, "strength": 0.01},
        "guardspace": {"prompts": str(requests), "max_new_tokens": 4, "null_tolerance": 1e-2},
        "salora": {"prompts": str(requests), "max_new_tokens": 4, "safety_rank": 5, "task_rank": 8, "task_rows": 6},
    }

    def options(method: str, **changes: Any) -> dict[str, Any]:
        return {**own.get(method, {}), **changes}

    return options
