"""Fixtures for every test: a small random chat model on disk and in memory, and prompts in its words."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may need a network
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from pathlib import Path

import pytest
import torch
from tiny_models import make_tiny_network, make_tiny_tokenizer, tiny_prompts

from securetune.data.prompts import ProbeSet, make_probe_set
from securetune.models import ChatModel, load

# A shell starts background jobs with Ctrl-C ignored, and their children inherit that: tests that send it would fail.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)

LONGEST_FIRST = ("pipeline/test_whole_run.py", "training/test_distributed.py", "analysis/test_tiny_world_analysis.py")
"""Files that take longest for their few tests; begun last, one process would work on them alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST_FIRST))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in the Hugging Face layout, with tokenizer and chat template. Do not write into it."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = make_tiny_tokenizer()
    make_tiny_network(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_chat_model(tiny_model_dir: Path) -> ChatModel:
    """The random model of `tiny_model_dir`, loaded afresh for each test."""
    return load(str(tiny_model_dir))


@pytest.fixture(scope="session")
def tiny_probes() -> ProbeSet:
    """Harmful and harmless prompts in the random model's words: 36 a class and split."""
    return make_probe_set(
        fit_harmful=tiny_prompts("harmful", 0, 36),
        fit_harmless=tiny_prompts("harmless", 0, 36),
        score_harmful=tiny_prompts("harmful", 1, 36),
        score_harmless=tiny_prompts("harmless", 1, 36),
    )
