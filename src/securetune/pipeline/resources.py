"""How many worker processes a run gets, and how many threads each of them."""

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
    """

    workers: int
    threads: int | None


def plan_resources(config: RunConfig, jobs: int) -> Resources:
    """Divide the machine among `jobs` jobs: one process a core for a small model on a CPU, else one that gets all."""
    if not _is_on_cpu(config.model):
        return Resources(min(config.workers or 1, jobs), None)
    cores = _usable_cores()
    if _weights_bytes(config.model) <= SMALL_MODEL_BYTES:
        return Resources(min(config.workers or cores, jobs), 1)
    workers = min(config.workers or 1, jobs)
    return Resources(workers, max(1, cores // workers))


def _is_on_cpu(model: ModelSettings) -> bool:
    return model.device == "cpu" or (model.device == "auto" and not torch.cuda.is_available())


def _usable_cores() -> int:
    """Cores that this process may run on, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _weights_bytes(model: ModelSettings) -> float:
    source = find_model(model.name)
    if source.is_hub:
        return float("inf")  # not known before the download; the careful answer
    return float(sum(path.stat().st_size for path in Path(source.location).glob("*.safetensors")))
