"""How a machine is divided among a run's jobs."""

import pytest
import torch

from securetune.config import check_run_config
from securetune.pipeline.resources import Resources, plan_resources


def config(**model):
    return check_run_config({"data": "tiny-world", "model": {"name": "tiny-world", **model}})


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 4, Resources(4, None, ("0", "1", "2", "3"))),
        ("5,2", 2, Resources(2, None, ("5", "2"))),
        ("GPU-aa,GPU-bb", 2, Resources(2, None, ("GPU-aa", "GPU-bb"))),
        (None, 1, Resources(1, None, ())),
        (None, 9, Resources(6, None, tuple("012345678"))),
    ],
)
def test_one_worker_a_gpu(monkeypatch, visible, count, expected):
    """Each GPU that may be used gets a worker, as far as there are jobs; a single one needs not be given out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert plan_resources(config(), jobs=6) == expected


def test_a_named_gpu_is_the_only_one(monkeypatch):
    """A model that the settings put on one GPU has one worker there, and sees the GPUs under their own names."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert plan_resources(config(device="cuda:2"), jobs=6) == Resources(1, None, ())


def test_a_small_model_on_a_cpu_has_a_worker_a_core(monkeypatch):
    """One thread each, and no GPU, even where there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = plan_resources(config(device="cpu"), jobs=2)
    assert (found.threads, found.gpus) == (1, ())
    assert 1 <= found.workers <= 2
