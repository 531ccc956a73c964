"""Training shared by two real processes over gloo, by DDP and by FSDP2: the same as in one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import EXPERTS, make_architecture
from launching import SHARDED, assert_same, is_robust, launch, results
from safetensors.torch import load_file
from shared_training import ADAPTER, ON_EXPERTS, UPPER, run
from short_training import OptionsOf, make_manifest
from tiny_models import make_tiny_tokenizer
from transformers import AutoModelForCausalLM

from securetune.artifacts import SavedSubspaces, read_artifact, write_json
from securetune.defenses.protected_subspace.spectrum import InputSpectrum
from securetune.models import load


@pytest.mark.parametrize(
    ("how", "method", "tune"),
    [
        ("DDP", "swat", "full"),
        pytest.param("DDP", "ml-lr", "lora", marks=pytest.mark.long),
        pytest.param("FSDP 2 layers, 2 checkpointed", "swat", "full", marks=pytest.mark.long),
        pytest.param(SHARDED, "swat", "lora", marks=pytest.mark.long),
        pytest.param(SHARDED, "swat", "full", marks=pytest.mark.long),
        pytest.param(SHARDED, "ml-lr", "full", marks=pytest.mark.long),
        pytest.param(SHARDED, "ml-lr", "lora", marks=pytest.mark.long),
    ],
)
def test_two_processes_train_what_one_does(tiny_model_dir: Path, tmp_path: Path, how: str, method: str, tune: str):
    """The same losses, replicas that are identical, and in the warm-up nothing moves but the robust modules."""
    parts = results(tiny_model_dir, tmp_path, "--method", method, *(["--lora"] if tune == "lora" else []), how=how)
    alone = run(tiny_model_dir, tmp_path / "alone", method, ADAPTER if tune == "lora" else None, processes=1)
    assert alone["wrappers"] <= {"LlamaForCausalLM", "PeftModelForCausalLM", "PeftModel"}
    for part in parts:
        assert part["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert_same(parts[0]["end"], parts[1]["end"])
    if method == "swat":
        before, after = parts[0]["starts"]["warmup"], parts[0]["starts"]["main"]
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved
        assert all(is_robust(name) for name in moved)
        assert_same(parts[0]["starts"]["main"], parts[1]["starts"]["main"])
    if tune == "lora":
        norms = [
            [row[key] for row in found["logs"] if (key := "update_norm/robust") in row] for found in (parts[0], alone)
        ]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
        assert len(norms[0]) == 6


@pytest.mark.long
@pytest.mark.parametrize("how", ["DDP", SHARDED])
@pytest.mark.parametrize("name", EXPERTS)
def test_adapters_on_experts_train_as_in_one_process(tmp_path: Path, name: str, how: str):
    """PEFT's nested wrappers on stacked parameters: the losses of one process; the warm-up moves the robust alone."""
    tokenizer = make_tiny_tokenizer()
    for what in (make_architecture(*EXPERTS[name], vocab_size=len(tokenizer)), tokenizer):
        what.save_pretrained(tmp_path / "model")
    experts = "model.layers.0.mlp.experts"
    more = {"robust_modules": [f"{experts}.gate_up_proj", f"{experts}.down_proj"]}
    parts = results(tmp_path / "model", tmp_path, "--on-experts", "--more", json.dumps(more), how=how)
    alone = run(tmp_path / "model", tmp_path / "alone", "swat", ON_EXPERTS, processes=1, **more)
    for part in parts:  # each expert's sums go over fewer tokens here; after ten steps that shows in the fifth digit
        assert part["losses"] == pytest.approx(alone["losses"], rel=3e-5)
    assert_same(parts[0]["end"], parts[1]["end"])
    before, after = parts[0]["starts"]["warmup"], parts[0]["starts"]["main"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(moved) == 4
    assert all(f".{experts}." in name for name in moved)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "tune"),
    [
        ("lisa", "full"),
        ("lisa", "lora"),
        ("sap", "full"),
        ("safegrad", "lora"),
        ("asft", "full"),
        ("guardspace", "lora"),
        ("salora", "lora"),
    ],
)
def test_methods_that_act_around_steps_do_so_in_two_processes(
    method: str, tune: str, tiny_model_dir: Path, tmp_path: Path, options_of: OptionsOf
):
    """With DDP, accumulation and rows of their own that the processes share, losses are as in one.

    Replicas are identical. SAP's probe takes a step of full length however small its gradient is, so that rounding
    shows in the weights.
    """
    own = {"method_options": options_of(method), "gradient_accumulation_steps": 2, "warmup_phase_steps": None}
    more = ["--method", method, *(["--lora"] if tune == "lora" else []), "--more", json.dumps(own)]
    parts = results(tiny_model_dir, tmp_path, *more, also="LlamaForCausalLM" if method == "sap" else "")
    alone = run(tiny_model_dir, tmp_path / "alone", method, ADAPTER if tune == "lora" else None, processes=1, **own)
    for part in parts:
        assert part["losses"] == pytest.approx(alone["losses"], rel=1e-2 if method == "sap" else 1e-3)
    assert_same(parts[0]["end"], parts[1]["end"])
    for name, value in alone["end"].items() if method != "sap" else ():
        torch.testing.assert_close(parts[0]["end"][name], value, rtol=1e-2, atol=2e-3, msg=name)


@pytest.mark.long
def test_sharded_weights_are_refused_by_methods_that_act_around_steps(
    tiny_model_dir: Path, tmp_path: Path, options_of: OptionsOf
):
    """With FSDP2 one sentence says so before anything is trained."""
    settings = json.dumps({"method_options": options_of("lisa")})
    refused = launch(tiny_model_dir, tmp_path, "--method", "lisa", "--more", settings, how=SHARDED)
    assert refused.returncode != 0
    assert 'method "lisa" needs whole weights and gradients in each process, which FSDP divides' in refused.stderr


@pytest.mark.long
def test_safety_layers_are_frozen_in_shards_too(tiny_model_dir: Path, tmp_path: Path):
    """With FSDP2 and the layers named, those stay as they were, and the others train as in one process."""
    own = {"method_options": {"layers": [1, 1]}, "warmup_phase_steps": None}
    parts = results(tiny_model_dir, tmp_path, "--method", "sppft", "--more", json.dumps(own), how=SHARDED)
    before, after = parts[0]["starts"]["main"], parts[0]["end"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(".layers.1." in name for name in moved)


def test_a_sharded_model_is_saved_whole(tiny_model_dir: Path, tmp_path: Path):
    """With a manifest that only the process which reads the weights can check, what is saved is what was trained."""
    chat = load(str(tiny_model_dir))
    names = [f"{path}" for path in UPPER]
    write_json(tmp_path / "modules.json", make_manifest(chat, names))
    settings = json.dumps({"robust_modules": str(tmp_path / "modules.json")})
    parts = results(tiny_model_dir, tmp_path, "--more", settings, how=SHARDED)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "saved", dtype=torch.float32)
    assert_same(dict(saved.named_parameters()), parts[0]["end"])


@pytest.mark.long
def test_sharded_training_in_bf16_keeps_float32_masters_in_both_phases(tiny_model_dir: Path, tmp_path: Path):
    """What only the main phase trains is held in float32 there too, with such gradients, and trains from it."""
    parts = results(tiny_model_dir, tmp_path, "--bf16", how="bf16")
    assert parts[0]["gradient_types"] == {torch.float32}
    assert {value.dtype for value in parts[0]["end"].values()} == {torch.float32}
    moved = [
        name for name, value in parts[0]["starts"]["main"].items() if not torch.equal(value, parts[0]["end"][name])
    ]
    assert len(moved) == len(parts[0]["end"])


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """An adapter's warm-up and main phase without an interruption."""
    return results(tiny_model_dir, tmp_path_factory.mktemp("whole"), "--lora")


@pytest.mark.long
@pytest.mark.parametrize("stop", ["warmup-3", "main-1"])
def test_a_killed_sharded_training_goes_on(tiny_model_dir: Path, tmp_path: Path, stop: str):
    """Killed in the warm-up or at the boundary, FSDP2 ends with the weights of a whole training."""
    before = results(tiny_model_dir, tmp_path / "whole", how=SHARDED)
    assert launch(tiny_model_dir, tmp_path / "killed", "--stop", stop, how=SHARDED).returncode != 0
    resumed = results(tiny_model_dir, tmp_path / "killed", "--resume", how=SHARDED)
    for one, other in zip(before, resumed, strict=True):
        assert_same(one["end"], other["end"])


@pytest.mark.long
@pytest.mark.parametrize("tune", [[], ["--lora"]], ids=["full", "lora"])
def test_refusals_are_probed_in_a_sharded_training(tiny_model_dir: Path, tmp_path: Path, tune: list[str]):
    """Both phases probe, at their beginning and every two steps, and train as they do without a probe."""
    settings = json.dumps({"refusal_probe_steps": 2, "refusal_probe_prompts": 2})
    probed = results(tiny_model_dir, tmp_path / "probed", *tune, "--more", settings, how=SHARDED)
    plain = results(tiny_model_dir, tmp_path / "plain", *tune, how=SHARDED)
    assert len([row for row in probed[0]["logs"] if "refusal_probe/refusal_rate" in row]) == 4
    assert_same(probed[0]["end"], plain[0]["end"])


@pytest.mark.long
def test_an_adapters_checkpoint_that_would_not_be_read_back_is_refused(tiny_model_dir: Path, tmp_path: Path):
    """With FSDP's own activation checkpointing accelerate loads no adapter, without a word; so resuming is refused."""
    how = "FSDP 2 layers, 2 checkpointed"
    assert launch(tiny_model_dir, tmp_path, "--lora", "--stop", "main-3", how=how).returncode != 0
    refused = launch(tiny_model_dir, tmp_path, "--lora", "--resume", how=how)
    assert refused.returncode != 0
    assert "fsdp_activation_checkpointing" in refused.stderr


@pytest.mark.long
@pytest.mark.parametrize("stop", ["warmup-3", "main-1", "main-3"])
def test_a_killed_training_of_two_processes_goes_on(
    whole: list[dict[str, Any]], tiny_model_dir: Path, tmp_path: Path, stop: str
):
    """Killed in the warm-up, at the boundary or in the main phase, it ends with the weights of a whole one."""
    assert launch(tiny_model_dir, tmp_path, "--lora", "--stop", stop).returncode != 0
    resumed = results(tiny_model_dir, tmp_path, "--lora", "--resume")
    for one, other in zip(whole, resumed, strict=True):
        assert_same(one["end"], other["end"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "tune", "phases", "tail_pull"),
    [
        (SHARDED, "full", "swat", 0),
        (SHARDED, "lora", "plain", 0.3),
        (SHARDED, "full", "ml-lr", 0.3),
        ("DDP", "full", "swat", 0),
    ],
)
def test_a_protected_subspace_is_that_of_one_process(
    how: str, tune: str, phases: str, tail_pull: float, tiny_model_dir: Path, tmp_path: Path, options_of: OptionsOf
):
    """Replicated or in shards, weights are those of one process within 1e-5, and protected inputs pass as before."""
    own = {"method_options": options_of("protected-subspace", phases=phases, tail_pull=tail_pull)}
    more = ["--method", "protected-subspace", *(["--lora"] if tune == "lora" else []), "--more", json.dumps(own)]
    parts = results(tiny_model_dir, tmp_path, *more, how=how)
    adapter = ADAPTER if tune == "lora" else None
    alone = run(tiny_model_dir, tmp_path / "alone", "protected-subspace", adapter, processes=1, **own)
    for part in parts:
        assert part["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert_same(parts[0]["end"], parts[1]["end"])
    for name, value in alone["end"].items():
        torch.testing.assert_close(parts[0]["end"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    require_confined(
        tiny_model_dir, parts[0]["end"], tmp_path / "run" / "_method" / "subspaces", is_adapter=tune == "lora"
    )


@pytest.mark.long
@pytest.mark.parametrize("stop", ["warmup-3", "main-1"])
def test_a_killed_protected_training_goes_on_in_shards(
    stop: str, tiny_model_dir: Path, tmp_path: Path, options_of: OptionsOf
):
    """Killed in the warm-up or at the boundary, it ends with the weights of a whole one: U and W₀ are the start's."""
    own = json.dumps({"method_options": options_of("protected-subspace", phases="swat")})
    more = ["--method", "protected-subspace", "--more", own]
    before = results(tiny_model_dir, tmp_path / "whole", *more, how=SHARDED)
    assert launch(tiny_model_dir, tmp_path / "killed", *more, "--stop", stop, how=SHARDED).returncode != 0
    resumed = results(tiny_model_dir, tmp_path / "killed", *more, "--resume", how=SHARDED)
    for one, other in zip(before, resumed, strict=True):
        assert_same(one["end"], other["end"])


def require_confined(model: Path, end: dict[str, torch.Tensor], folder: Path, is_adapter: bool) -> None:
    """Check in those of the saved directions that hold the energy that W U = W₀ U, or A U = 0."""
    start = dict(load(str(model)).model.named_parameters())
    saved = load_file(folder / "subspaces.safetensors")
    for each in read_artifact(folder / "subspaces.json", SavedSubspaces).inputs:
        values, vectors = (saved[f"{each.paths[0]}.{part}"] for part in ("values", "directions"))
        basis = vectors[:, : InputSpectrum(values, vectors, each.trace, each.range_finder).rank_for(each.energy)]
        for path in each.paths:
            if is_adapter:
                after = [value @ basis for name, value in end.items() if f"{path}.lora_A" in name]
                assert all(float(each.norm()) < 1e-5 for each in after)
            else:
                name = f"{path}.weight"
                torch.testing.assert_close(end[name] @ basis, start[name] @ basis, rtol=1e-4, atol=1e-5, msg=name)
                assert (end[name] - start[name]).norm() > 1e-3
