"""The perturbation that analysis and search use; for `update`, the short fine-tuning runs that it is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from securetune import models
from securetune.analysis import make_perturbation
from securetune.config import AnalysisSettings, ModelSettings, TrainingSettings
from securetune.data.prompts import ProbeSet
from securetune.errors import ConfigError
from securetune.features import Perturbation, UpdatePerturbation
from securetune.models import ChatModel, map_modules
from securetune.progress import ProgressCallback
from securetune.training import train


def open_perturbation(
    name: str,
    model: ChatModel,
    probes: ProbeSet,
    analysis: AnalysisSettings,
    training: TrainingSettings,
    data: str | None,
    folder: Path,
    progress: ProgressCallback,
) -> Perturbation:
    """Make the perturbation of this name; for `update`, run or find the fine-tuning runs.

    Args:
        name: `gaussian`, `update` or `mean`.
        model: The start model.
        probes: For `mean`, whose means are taken over the fitting prompts.
        analysis: For the number of runs, their steps and their first seed.
        training: How the runs train; always plain fine-tuning of all parameters, on the data as they are given.
        data: The user's data; needed for `update`.
        folder: Holds the runs; those that are complete are not repeated.
        progress: Told how far it is.

    Raises:
        ConfigError: If `update` is asked for without data, or the folder holds runs with other settings.
    """
    if name != "update":
        return make_perturbation(model, probes, analysis.model_copy(update={"perturbation": name}))
    if data is None:
        raise ConfigError("analysis.perturbation: update needs the data that you want to tune on. Give --data FILE.")
    runs = [
        _update_of(model, analysis, training, data, folder / f"run-{number}", number, progress)
        for number in range(analysis.update_runs)
    ]
    return UpdatePerturbation(runs)


def _update_of(
    model: ChatModel,
    analysis: AnalysisSettings,
    training: TrainingSettings,
    data: str,
    folder: Path,
    number: int,
    progress: ProgressCallback,
) -> Mapping[str, Tensor]:
    """Fine-tune plainly for a few steps, and keep what that did to every projection."""
    settings = training.model_copy(
        update={
            "method": "ift",
            "modules": "searched",
            "tune": "full",
            "before": (),
            "after": (),
            "generation": (),
            "max_steps": analysis.update_steps,
            "seed": analysis.seed + number,
        }
    )
    train(settings, model.settings, data, folder, None, progress)
    path = folder / "update.safetensors"
    if not path.exists():
        _write_update(model, folder, path)
    return _StoredUpdate(path)


def _write_update(model: ChatModel, folder: Path, path: Path) -> None:
    tuned = models.load(ModelSettings(name=str(folder / "model"), dtype="float32", device="cpu"))
    update = {}
    for before, after in zip(map_modules(model.model), map_modules(tuned.model), strict=True):
        start = before.weight_in(model.model).detach().float().cpu()
        update[before.name] = (after.weight_in(tuned.model).detach().float() - start).contiguous()
    beside = path.with_name(f".{path.name}.part")
    save_file(update, beside)
    beside.replace(path)


class _StoredUpdate(Mapping[str, Tensor]):
    """ΔW of each module, read from its file when it is asked for: all of them would be as large as the model."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor.to(torch.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
