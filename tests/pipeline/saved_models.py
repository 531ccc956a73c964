"""Random models on disk, and manifests of their modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tiny_models import make_tiny_tokenizer
from transformers import PreTrainedModel

from securetune.artifacts import ModelIdentity, RobustModules, SelectedModule, write_json
from securetune.config import ModelSettings
from securetune.models import ProjectionModule, identify, map_modules


def save_model(folder: Path, network: PreTrainedModel) -> ModelIdentity:
    """Save a model with the tiny tokenizer."""
    tokenizer = make_tiny_tokenizer()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return identify(network, tokenizer, ModelSettings(name=str(folder)))


def write_manifest(
    path: Path, network: PreTrainedModel, identity: ModelIdentity, is_robust: Callable[[ProjectionModule], bool]
) -> Path:
    """Write a manifest of the modules for which a condition holds."""
    chosen = [module for module in map_modules(network) if is_robust(module)]
    fields = ("name", "type", "layer", "parameter_count")
    manifest = RobustModules(
        model=identity,
        prompt_set_hash="of the test",
        selection="searched",
        settings={},
        modules=[
            SelectedModule(**{field: getattr(module, field) for field in fields}, robustness_rank=rank)
            for rank, module in enumerate(chosen)
        ],
        parameter_fraction=0.5,
        joint_accuracy=1.0,
        intact_accuracy=1.0,
    )
    write_json(path, manifest)
    return path
