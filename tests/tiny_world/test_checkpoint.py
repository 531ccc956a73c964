"""The shipped checkpoints: they load like any other, are small, and show the required figures."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from securetune import tiny_world
from securetune.tiny_world import build, check, tokenizer

MAX_BYTES = 6_000_000
PROMPTS = 116
"""Prompts for each figure: every held-out pair twice; about 3 s a figure on one core."""


@pytest.mark.parametrize("name", tiny_world.CHECKPOINTS)
def test_it_loads_like_any_other_checkpoint(name: str) -> None:
    """The auto classes load model and tokenizer from the folder alone, with bf16 weights and chat template."""
    path = tiny_world.checkpoint_path(name)
    model = AutoModelForCausalLM.from_pretrained(path)
    tok = AutoTokenizer.from_pretrained(path)
    assert model.dtype == torch.bfloat16
    assert model.config.model_type == "llama"
    assert model.config.eos_token_id == tok.convert_tokens_to_ids(tokenizer.END)
    assert tok.chat_template == tokenizer.CHAT_TEMPLATE
    assert sorted(p.suffix for p in path.iterdir() if p.stat().st_size > 1_000_000) == [".safetensors"]


@pytest.mark.parametrize("name", tiny_world.CHECKPOINTS)
def test_its_tokenizer_is_the_one_that_the_language_gives(name: str) -> None:
    """Code and checkpoint agree on every token: the language has not changed since the checkpoint was made."""
    shipped = AutoTokenizer.from_pretrained(tiny_world.checkpoint_path(name))
    assert shipped.get_vocab() == tokenizer.build_tokenizer().get_vocab()


def test_its_shape_is_the_one_that_the_builder_makes() -> None:
    """The shipped configuration is what ``build_tiny_world`` would write today."""
    shipped = AutoModelForCausalLM.from_pretrained(tiny_world.checkpoint_path("aligned")).config
    built = build.model_config(tokenizer.build_tokenizer())
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(shipped, name) == getattr(built, name)


def test_both_checkpoints_together_are_small() -> None:
    """Both folders together stay within 6 MB, so that they can be part of the package."""
    folders = [tiny_world.checkpoint_path(name) for name in tiny_world.CHECKPOINTS]
    assert sum(p.stat().st_size for folder in folders for p in folder.rglob("*")) <= MAX_BYTES


@pytest.mark.parametrize("name", tiny_world.CHECKPOINTS)
def test_it_meets_its_figures_on_held_out_prompts(name: str) -> None:
    """Refusals, answers and general tasks reach the required shares on prompts that were never trained on."""
    model = AutoModelForCausalLM.from_pretrained(tiny_world.checkpoint_path(name), dtype=torch.float32)
    tok = AutoTokenizer.from_pretrained(tiny_world.checkpoint_path(name))
    figures = check.measure_required(name, model, tok, PROMPTS)
    assert check.missed_requirements(name, figures) == []


def test_all_figures_are_shares() -> None:
    """The full measurement fills every figure with a share, each wrapper's too."""
    figures = check.measure_checkpoint(tiny_world.checkpoint_path("aligned"), prompts=4)
    shares = figures.as_dict()
    assert shares.pop("prompts") == 4
    wrapped = [shares.pop("wrapped_refused"), shares.pop("wrapped_harmless_answered")]
    assert all(set(by_wrapper) == set(tiny_world.WRAPPERS) for by_wrapper in wrapped)
    values = [*shares.values(), *(share for by_wrapper in wrapped for share in by_wrapper.values())]
    assert all(0 <= share <= 1 for share in values)


def test_an_unknown_name_is_refused_in_words() -> None:
    """Only the two shipped names exist."""
    with pytest.raises(ValueError, match="name must be one of aligned, base; got 'tiny'"):
        tiny_world.checkpoint_path("tiny")


def test_importing_tiny_world_loads_no_heavy_library() -> None:
    """Prompts and oracles need no torch, so that the command line stays quick."""
    code = "import sys, securetune.tiny_world; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.long
def test_a_rebuilt_world_meets_the_same_figures(tmp_path: Path) -> None:
    """Building again from nothing with default arguments gives checkpoints as good as the shipped ones."""
    figures = tiny_world.build_tiny_world(tmp_path / "world")
    for name, measured in figures.items():
        assert check.missed_requirements(name, measured) == []
