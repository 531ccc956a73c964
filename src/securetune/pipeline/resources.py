"""How many worker processes a run gets, how many threads each of them, and which GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from securetune.config import ModelSettings, RunConfig
from securetune.models.registry import find_model

SMALL_MODEL_BYTES = 200e6
"""Up to here a training step gains nothing from a second thread, and a copy for every core fits into memory."""


class Resources(NamedTuple):
    """What a run may use at a time.

    Attributes:
        workers: Worker processes.
        threads: Threads in each, or None for torch's own choice.
        gpus: The GPUs among which the workers are divided, as `CUDA_VISIBLE_DEVICES` names them; none where the model
            is on a CPU, or on one GPU that the settings name.
    """

    workers: int
    threads: int | None
    gpus: tuple[str, ...] = ()


def plan_resources(config: RunConfig, jobs: int) -> Resources:
    """Divide the machine among `jobs` jobs: one process a GPU, or a core for a small model on a CPU, else one."""
    if not _is_on_cpu(config.model):
        gpus = _visible_gpus() if config.model.device in ("auto", "cuda") else ()
        workers = min(config.workers or len(gpus) or 1, jobs)
        return Resources(workers, None, gpus if len(gpus) > 1 else ())
    cores = _usable_cores()
    if _weights_bytes(config.model) <= SMALL_MODEL_BYTES:
        return Resources(min(config.workers or cores, jobs), 1)
    workers = min(config.workers or 1, jobs)
    return Resources(workers, max(1, cores // workers))


def _is_on_cpu(model: ModelSettings) -> bool:
    return model.device == "cpu" or (model.device == "auto" and not torch.cuda.is_available())


def _visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, by the names under which a child can be given one of them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count]) if len(named) >= count else tuple(map(str, range(count)))


def _usable_cores() -> int:
    """Cores that this process may run on, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _weights_bytes(model: ModelSettings) -> float:
    source = find_model(model.name)
    if source.is_hub:
        return float("inf")  # not known before the download; the careful answer
    return float(sum(path.stat().st_size for path in Path(source.location).glob("*.safetensors")))
