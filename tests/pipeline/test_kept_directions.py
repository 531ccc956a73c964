"""Protected directions are gathered once a method, not once a seed."""

import pytest
from safetensors.torch import load_file

from securetune.config import ModelSettings, TrainingSettings, check_run_config
from securetune.defenses.protected_subspace import FOLDER, protection
from securetune.pipeline.folder import RunFolder
from securetune.pipeline.jobs import lenders
from securetune.pipeline.kept_directions import borrow_directions
from securetune.training import train

OPTIONS = {"max_prompts": 4, "max_new_tokens": 2, "batch_size": 4}


def trained(out, seed, **options):
    settings = TrainingSettings(
        method="protected-subspace",
        method_options={**OPTIONS, **options},
        max_steps=2,
        per_device_train_batch_size=2,
        max_length=64,
        learning_rate=1e-3,
        seed=seed,
    )
    train(settings, ModelSettings(), "tiny-world", out)
    return load_file(out / "model" / "model.safetensors")


def test_another_seed_borrows_what_it_would_gather_itself(tmp_path, monkeypatch):
    """It gathers nothing, ends with the same weights, and the files are links to the first one's."""
    trained(tmp_path / "first", seed=0)
    own = trained(tmp_path / "own", seed=1)
    assert borrow_directions(tmp_path / "borrowed", [tmp_path / "not there", tmp_path / "first"])
    monkeypatch.setattr(protection, "gather_subspaces", lambda *_: pytest.fail("gathered again"))
    borrowed = trained(tmp_path / "borrowed", seed=1)
    assert all(borrowed[name].equal(own[name]) for name in own)
    for path in (tmp_path / "first" / FOLDER).iterdir():
        assert path.samefile(tmp_path / "borrowed" / FOLDER / path.name)


def test_what_does_not_fit_is_gathered_anew_and_the_lender_keeps_its_own(tmp_path):
    """Directions of another energy are not used; writing its own, the borrower does not touch the other's files."""
    trained(tmp_path / "first", seed=0)
    before = {path.name: path.read_bytes() for path in (tmp_path / "first" / FOLDER).iterdir()}
    assert borrow_directions(tmp_path / "other", [tmp_path / "first"])
    other = trained(tmp_path / "other", seed=1, energy=0.5)
    own = trained(tmp_path / "own", seed=1, energy=0.5)
    assert all(other[name].equal(own[name]) for name in own)
    assert {path.name: path.read_bytes() for path in (tmp_path / "first" / FOLDER).iterdir()} == before


def test_nothing_is_lent_where_there_is_nothing_or_something_already(tmp_path):
    """A folder without its manifest counts as holding none; a training that has directions keeps them."""
    (tmp_path / "incomplete" / FOLDER).mkdir(parents=True)
    (tmp_path / "incomplete" / FOLDER / "subspaces.safetensors").write_bytes(b"")
    assert not borrow_directions(tmp_path / "new", [tmp_path / "incomplete", tmp_path / "none"])
    assert not (tmp_path / "new").exists()
    (tmp_path / "full" / FOLDER).mkdir(parents=True)
    (tmp_path / "full" / FOLDER / "subspaces.json").write_text("{}")
    assert borrow_directions(tmp_path / "new", [tmp_path / "full"])
    assert not borrow_directions(tmp_path / "new", [tmp_path / "full"])


def test_methods_that_look_at_the_model_alike_lend_to_one_another(tmp_path):
    """All seeds of all methods with the same options do, whatever they train on and how fast; others do not."""
    same = {"method": "protected-subspace", "method_options": {"energy": 0.8}}
    methods = {
        "first": same,
        "fast": {**same, "learning_rate": 1e-2},
        "mixed": {**same, "before": ["safety-mix"]},
        "wider": {**same, "method_options": {"energy": 0.9}},
        "lora": {**same, "tune": "lora"},
        "ift": {},
    }
    config = check_run_config({"data": "tiny-world", "methods": methods, "seeds": [0, 1]})
    found = lenders(config, RunFolder(tmp_path), "fast")
    assert [path.relative_to(tmp_path / "methods").as_posix() for path in found] == [
        f"{label}/seed-{seed}" for seed in (0, 1) for label in ("first", "fast", "mixed")
    ]
