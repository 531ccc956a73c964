"""A short training on the random tiny model, and a manifest with its upper layer."""

import gc
from pathlib import Path
from typing import Any

import pytest
from short_training import SHORT, TrainShort, make_manifest, make_rows

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
