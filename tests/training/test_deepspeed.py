"""DeepSpeed's ZeRO-2 and ZeRO-3 with two processes on the CPU, by the launch configurations that are shipped."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from architectures import SUPPORTED, make_architecture
from launching import assert_same, is_robust, launch, results
from peft import PeftModel
from shared_training import ADAPTER, UPPER, run
from short_training import make_manifest
from tiny_models import make_tiny_tokenizer
from transformers import AutoModelForCausalLM

from securetune.artifacts import write_json
from securetune.models import load, map_modules

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]
STAGES = ("ZeRO-2", "ZeRO-3")


@pytest.mark.parametrize("tune", [[], ["--lora"]], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["swat", "ml-lr"])
@pytest.mark.parametrize("how", STAGES)
def test_two_processes_train_what_one_does(
    tiny_model_dir: Path, tmp_path: Path, how: str, method: str, tune: list[str]
):
    """The losses of one process, the same weights in both, and in the warm-up nothing moves but the robust modules."""
    parts = results(tiny_model_dir, tmp_path, "--method", method, *tune, how=how)
    alone = run(tiny_model_dir, tmp_path / "alone", method, ADAPTER if tune else None, processes=1)
    for part in parts:
        assert part["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert_same(parts[0]["end"], parts[1]["end"])
    for name, value in alone["end"].items():
        assert torch.allclose(parts[0]["end"][name], value, atol=1e-4), name
    if method == "swat":
        before, after = parts[0]["starts"]["warmup"], parts[0]["starts"]["main"]
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved
        assert all(is_robust(name) for name in moved)
    norms = [[row[key] for row in found["logs"] if (key := "update_norm/robust") in row] for found in (parts[0], alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert len(norms[0]) == (6 if tune else 0)


@pytest.mark.parametrize("tune", [[], ["--lora"]], ids=["full", "lora"])
@pytest.mark.parametrize("how", STAGES)
def test_a_killed_training_goes_on(tiny_model_dir: Path, tmp_path: Path, how: str, tune: list[str]):
    """Killed in the warm-up, at the boundary or in the main phase, it ends with the weights of a whole one."""
    whole = results(tiny_model_dir, tmp_path / "whole", *tune, how=how)
    for stop in ("warmup-3", "main-1", "main-3"):
        assert launch(tiny_model_dir, tmp_path / stop, *tune, "--stop", stop, how=how).returncode != 0
        resumed = results(tiny_model_dir, tmp_path / stop, *tune, "--resume", how=how)
        for one, other in zip(whole, resumed, strict=True):
            assert_same(one["end"], other["end"])


@pytest.mark.parametrize("tune", [[], ["--lora"]], ids=["full", "lora"])
@pytest.mark.parametrize("how", STAGES)
def test_what_is_saved_is_whole(tiny_model_dir: Path, tmp_path: Path, how: str, tune: list[str]):
    """With a manifest that is checked against weights that no process has whole; and refusals are probed on the way."""
    write_json(tmp_path / "modules.json", make_manifest(load(str(tiny_model_dir)), UPPER))
    more = {"robust_modules": str(tmp_path / "modules.json"), "refusal_probe_steps": 2, "refusal_probe_prompts": 2}
    parts = results(tiny_model_dir, tmp_path, *tune, "--more", json.dumps(more), how=how)
    assert len([row for row in parts[0]["logs"] if "refusal_probe/refusal_rate" in row]) == 4
    plain = results(tiny_model_dir, tmp_path / "plain", *tune, how=how)
    assert_same(parts[0]["end"], plain[0]["end"])
    if tune:
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        saved = PeftModel.from_pretrained(base, str(tmp_path / "run" / "saved"))
    else:
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "saved", dtype=torch.float32)
    assert_same(dict(saved.named_parameters()), parts[0]["end"])


@pytest.mark.parametrize("how", ["ZeRO-2 bf16", "ZeRO-3 bf16"])
def test_a_training_in_bf16_goes_on_at_the_boundary(tiny_model_dir: Path, tmp_path: Path, how: str):
    """The warm-up hands on bfloat16, as DeepSpeed holds it, to a model that was read in another precision."""
    whole = results(tiny_model_dir, tmp_path / "whole", "--bf16", how=how)
    assert launch(tiny_model_dir, tmp_path / "killed", "--bf16", "--stop", "main-1", how=how).returncode != 0
    resumed = results(tiny_model_dir, tmp_path / "killed", "--bf16", "--resume", how=how)
    assert_same(whole[0]["end"], resumed[0]["end"])
    start, end = whole[0]["starts"]["main"], whole[0]["end"]
    assert all(not torch.equal(start[name], end[name]) for name in end)


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "phi3"])
def test_weights_that_show_no_shape_are_mapped(tmp_path: Path, name: str):
    """Under ZeRO-3 the parts of stacked, transposed and fused weights are found as in the whole model."""
    tokenizer = make_tiny_tokenizer()
    model = make_architecture(*SUPPORTED[name], vocab_size=len(tokenizer))
    if name == "gpt2":  # each process draws its own dropout
        model.config.update(dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0))
    for what in (model, tokenizer):
        what.save_pretrained(tmp_path / "model")
    names = [module.name for module in map_modules(model) if module.layer == 1]
    parts = results(tmp_path / "model", tmp_path, "--more", json.dumps({"robust_modules": names}), how="ZeRO-3")
    alone = run(tmp_path / "model", tmp_path / "alone", "swat", None, processes=1, robust_modules=names)
    for part in parts:
        assert part["losses"] == pytest.approx(alone["losses"], rel=1e-4)
