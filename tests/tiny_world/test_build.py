"""The builder, on phases of a few steps."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from securetune.errors import ConfigError
from securetune.tiny_world import build, check, curriculum, tokenizer

FOUR_STEPS = dataclasses.replace(build.PRETRAINING, steps=4, warmup_steps=1, rows_per_step=8, rows_per_batch=4)
FIGURES = check.Figures(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, {"suffix": 0.8}, {"suffix": 0.9}, 10)


@pytest.fixture(autouse=True)
def quick_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves every second step, and measures nothing: untrained models never stop talking."""
    monkeypatch.setattr(build, "SAVE_STEPS", 2)
    monkeypatch.setattr(build, "log_figures", lambda *_: None)
    monkeypatch.setattr(check, "measure_checkpoint", lambda *_: FIGURES)


def _train(work: Path, phase: build.Phase) -> dict[str, torch.Tensor]:
    tok = tokenizer.build_tokenizer()
    return build.train_phase(build.new_model(tok, seed=0), tok, phase, work, seed=0).state_dict()


def test_a_phase_goes_on_from_its_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase that was killed half-way ends with the same weights, bit for bit."""
    whole = _train(tmp_path / "whole", FOUR_STEPS)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "log_figures", die)  # called right after the save of step 2
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "killed", FOUR_STEPS)
    resumed = _train(tmp_path / "killed", FOUR_STEPS)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_world_has_two_checkpoints_and_keeps_finished_work(tmp_path: Path) -> None:
    """Building writes both bf16 checkpoints and the figures; building again repeats only what is missing."""
    alignment = dataclasses.replace(FOUR_STEPS, mix=curriculum.ALIGNMENT_MIX, scheduler="cosine", steps=2)
    build.build_tiny_world(tmp_path, 0, FOUR_STEPS, alignment)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["aligned", "base", "figures.json", "settings.json"]
    assert json.loads((tmp_path / "figures.json").read_text()) == {
        "base": FIGURES.as_dict(),
        "aligned": FIGURES.as_dict(),
    }
    base_written = (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "aligned").state_dict()

    (tmp_path / "aligned").rename(tmp_path.parent / "first-aligned")
    build.build_tiny_world(tmp_path, 0, FOUR_STEPS, alignment)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "aligned").state_dict()
    assert (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns == base_written
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_folder_with_another_world_is_refused(tmp_path: Path) -> None:
    """A folder begun with one seed is not gone on with under another."""
    one_step = dataclasses.replace(FOUR_STEPS, steps=1)
    build.build_tiny_world(tmp_path, 0, one_step, one_step)
    with pytest.raises(ConfigError, match="holds a world of another seed or other phases"):
        build.build_tiny_world(tmp_path, 1, one_step, one_step)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    """Nothing is written into a folder that holds other files."""
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        build.build_tiny_world(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_missed_requirement_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A world that does not show its figures says so when it is built."""
    one_step = dataclasses.replace(FOUR_STEPS, steps=1)
    build.build_tiny_world(tmp_path, 0, one_step, one_step)
    assert "aligned: harmful_refused must be in [0.98, 1.00]; got 0.100" in caplog.messages
    assert "base: harmful_answered must be in [0.95, 1.00]; got 0.200" in caplog.messages


def test_rows_of_a_step_stay_together_when_sorted() -> None:
    """Sorting by length saves padding without moving a row to another step."""
    rows = [{"input_ids": [0] * n, "labels": [n]} for n in (5, 1, 4, 2, 9, 7)]
    ordered = build._sort_within_steps(rows, rows_per_step=3)
    assert [row["labels"][0] for row in ordered] == [1, 4, 5, 2, 7, 9]
