"""Protection beyond the protected directions: the pull on the tail, for all parameters, fused ones, and adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from short_training import OptionsOf, TrainShort
from test_protected_phases import gathered, train_fused, weights

from securetune.config import ModelSettings
from securetune.defenses import find_defense
from securetune.errors import InputError
from securetune.models import load, map_modules

METHOD = "protected-subspace"
PULLED = {"energy": 0.7, "tail_pull": 0.5}


def moved_outputs(update: torch.Tensor, spectrum: Any, first: int) -> float:
    """Return how far an update moves the outputs on the protected inputs, by the directions from the first on."""
    moved = update.detach() @ spectrum.vectors[:, first:]
    return float((moved.square().sum(0) * spectrum.values[first:]).sum().sqrt())


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("phi3", marks=pytest.mark.long)])
def test_the_tail_moves_less_and_the_protected_part_not_at_all(
    kind: str, options_of: OptionsOf, tmp_path: Path
) -> None:
    """In fused weights, each projection by its own energy, the outputs on protected inputs move less with the pull."""
    own = {**options_of(METHOD, energy=0.6), "energy_by": "sensitivity"}
    moved = {}
    for name, pull, every in (("free", 0.0, 1), ("pulled", 0.5, 1), ("pulled at times", 0.5, 3)):
        folder = tmp_path / name
        found = train_fused(kind, folder, tail_pull=pull, pull_every=every, **own).evidence["protected"]
        assert (sum(each["pulled_directions"] for each in found.values()) > 0) == (pull > 0)
        everything = gathered(folder, **options_of(METHOD, energy=0.9999)).subspaces
        assert everything is not None
        start, tuned = load(str(folder / "start")).model, load(str(folder / "out" / "model")).model
        moved[name] = 0.0
        for module in map_modules(start):
            spectrum = everything.spectra[module.path]
            update = module.weight_in(tuned) - module.weight_in(start)
            rank = found[module.name]["directions"]
            assert (update @ spectrum.vectors[:, :rank]).norm() < 1e-3 * update.norm()
            moved[name] += moved_outputs(update, spectrum, rank)
    assert 0 < moved["pulled"] < 0.7 * moved["free"]
    assert 0 < moved["pulled at times"] < 0.7 * moved["free"]
    assert moved["pulled at times"] != moved["pulled"]


def test_a_pulled_adapter_merges(
    tiny_model_dir: Path, options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """The adapter moves the outputs on protected inputs less than without the pull; merged it is the same model."""
    moved = {}
    for name, pull in (("free", 0.0), ("pulled", 0.5)):
        own = options_of(METHOD, energy=0.7, tail_pull=pull)
        train_short(tmp_path / name, method=METHOD, method_options=own, tune="lora", lora={"rank": 4})
        adapted = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / name / "model"), dtype=torch.float32).eval()
        ids = torch.tensor([[1, 5, 7, 9, 4]])
        with torch.no_grad():
            before = adapted(ids).logits
            merged = adapted.merge_and_unload()
            torch.testing.assert_close(merged(ids).logits, before, rtol=1e-4, atol=1e-4)
        start = load(str(tiny_model_dir))
        (tmp_path / name / "start").mkdir()
        start.model.save_pretrained(tmp_path / name / "start")
        start.tokenizer.save_pretrained(tmp_path / name / "start")
        everything = gathered(tmp_path / name, **options_of(METHOD, energy=0.9999)).subspaces
        assert everything is not None
        moved[name] = sum(
            moved_outputs(module.weight_in(merged) - module.weight_in(start.model), everything.spectra[module.path], 0)
            for module in map_modules(start.model)
        )
    assert 0 < moved["pulled"] < 0.8 * moved["free"]


def test_a_folder_serves_as_much_pull_as_it_was_gathered_for(
    tiny_model_dir: Path, options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """As much gives the weights of a training that gathers; more is one sentence, before anything is trained."""
    settings = {"method": METHOD, "max_steps": 2}
    train_short(tmp_path / "gathers", **settings, method_options=options_of(METHOD, **PULLED))
    folder = str(tmp_path / "gathers" / "subspaces")
    train_short(tmp_path / "uses", **settings, method_options={"subspaces": folder, **PULLED})
    assert weights(tmp_path / "uses") == weights(tmp_path / "gathers")
    train_short(tmp_path / "less", **settings, method_options={"subspaces": folder, **PULLED, "tail_pull": 0.2})
    assert weights(tmp_path / "less") != weights(tmp_path / "gathers")
    with pytest.raises(InputError, match=r"was gathered for a tail_pull of 0.5, .* got tail_pull 0.6. Gather again"):
        train_short(tmp_path / "more", **settings, method_options={"subspaces": folder, **PULLED, "tail_pull": 0.6})
    assert not (tmp_path / "more" / "model").exists()
    train_short(tmp_path / "hard", **settings, method_options=options_of(METHOD))
    hard = str(tmp_path / "hard" / "subspaces")
    with pytest.raises(InputError, match=r"was gathered for a tail_pull of 0.0"):
        train_short(tmp_path / "other", **settings, method_options={"subspaces": hard, **PULLED})
    asked_too_much = find_defense(METHOD, {"subspaces": hard, **PULLED, "energy": 0.95})
    with pytest.raises(InputError, match=r"for an energy of [^\n]*\n[^\n]*for a tail_pull of"):
        asked_too_much.check(ModelSettings(name=str(tiny_model_dir)))
