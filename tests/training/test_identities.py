"""Identities between the methods, bit for bit, under full tuning and under LoRA."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from short_training import TrainShort

from securetune.artifacts import RobustModules
from securetune.training.parameters import owner_of
from securetune.training.phase_trainer import PhaseTrainer

TUNES = ("full", "lora")
LORA = {"lora": {"rank": 2, "dropout": 0.25}}


def weights(out: Path) -> dict[str, torch.Tensor]:
    (path,) = (out / "model").glob("*.safetensors")
    return load_file(path)


def assert_same(one: Path, other: Path) -> None:
    found, expected = weights(one), weights(other)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module", params=TUNES)
def tune(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def plain(tune: str, train_short: TrainShort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a plain fine-tuning."""
    out = tmp_path_factory.mktemp("ift") / "out"
    train_short(out, method="ift", tune=tune, **LORA)
    return out


def test_ml_lr_with_ratio_one_is_ift(tune: str, plain: Path, train_short: TrainShort, tmp_path: Path) -> None:
    """ML-LR with a ratio of 1 ends with the weights of plain fine-tuning, bit for bit."""
    train_short(tmp_path / "out", method="ml-lr", tune=tune, learning_rate_ratio=1.0, **LORA)
    assert_same(tmp_path / "out", plain)


def test_swat_without_warm_up_is_ift(tune: str, plain: Path, train_short: TrainShort, tmp_path: Path) -> None:
    """SWAT with a warm-up of 0 steps ends with the weights of plain fine-tuning, bit for bit."""
    train_short(tmp_path / "out", method="swat", tune=tune, **{"warmup_phase_steps": 0}, **LORA)
    assert_same(tmp_path / "out", plain)


def test_the_same_training_twice(tune: str, plain: Path, train_short: TrainShort, tmp_path: Path) -> None:
    """A training repeated with the same seed gives the same weights, and the same log."""
    train_short(tmp_path / "out", method="ift", tune=tune, **LORA)
    assert_same(tmp_path / "out", plain)
    assert (tmp_path / "out/training_log.jsonl").read_text() == (plain / "training_log.jsonl").read_text()


def test_another_seed_is_another_training(tune: str, plain: Path, train_short: TrainShort, tmp_path: Path) -> None:
    """A training with another seed does not give the same weights."""
    train_short(tmp_path / "out", method="ift", tune=tune, seed=1, **LORA)
    other, first = weights(tmp_path / "out"), weights(plain)
    assert all(not torch.equal(other[name], first[name]) for name in first)


@pytest.mark.parametrize("other_parameters", ["rest", "robust", "frozen"])
def test_warm_up_moves_mods_rob_only(
    tune: str,
    other_parameters: str,
    train_short: TrainShort,
    manifest: RobustModules,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the warm-up everything outside Mods_Rob stays bit-identical, and everything inside moves."""
    before, after = _watch_phases(monkeypatch)
    train_short(tmp_path / "out", method="swat", tune=tune, other_parameters=other_parameters, **LORA)
    robust = {module.name for module in manifest.modules}
    for name, values in before["warmup"].items():
        moves = ".lora_" in name if tune == "lora" else True
        if owner_of(name, robust) is None:
            is_other = not any(part in name for part in ("self_attn", "mlp"))
            moves = moves and is_other and other_parameters == "robust"
        assert torch.equal(values, after["warmup"][name]) == (not moves), name


def test_main_phase_moves_everything(
    tune: str, train_short: TrainShort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the warm-up the frozen parameters do learn: each tensor that may train moves in the main phase."""
    before, after = _watch_phases(monkeypatch)
    train_short(tmp_path / "out", method="swat", tune=tune, **LORA)
    for name, values in before["main"].items():
        may_train = ".lora_" in name if tune == "lora" else True
        assert torch.equal(values, after["main"][name]) == (not may_train), name


def test_frozen_embeddings_stay_for_every_method(train_short: TrainShort, tmp_path: Path, tiny_model_dir: Path) -> None:
    """With `other_parameters: frozen`, embeddings, norms and head end as they began, in IFT too."""
    start = load_file(tiny_model_dir / "model.safetensors")
    for method in ("ift", "ml-lr", "swat"):
        train_short(tmp_path / method, method=method, other_parameters="frozen")
        end = weights(tmp_path / method)
        same = {name for name in start if torch.equal(start[name], end[name])}
        assert same == {name for name in start if not any(part in name for part in ("self_attn", "mlp."))}


def test_ratio_zero_freezes_the_rest(train_short: TrainShort, tmp_path: Path, tiny_model_dir: Path) -> None:
    """ML-LR with a ratio of 0 leaves everything outside Mods_Rob as it was."""
    train_short(tmp_path / "out", method="ml-lr", learning_rate_ratio=0.0)
    start, end = load_file(tiny_model_dir / "model.safetensors"), weights(tmp_path / "out")
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == {name for name in start if "layers.1." in name and "norm" not in name}


def _watch_phases(monkeypatch: pytest.MonkeyPatch) -> tuple[dict, dict]:
    """Copy every parameter at the beginning and the end of each phase."""
    before: dict[str, dict[str, torch.Tensor]] = {}
    after: dict[str, dict[str, torch.Tensor]] = {}
    original = PhaseTrainer.train

    def watched(self: PhaseTrainer, *arguments: object, **named: object) -> object:
        copy = lambda: {name: p.detach().clone() for name, p in self.network.named_parameters()}  # noqa: E731
        before[self.phase.name] = copy()
        result = original(self, *arguments, **named)
        after[self.phase.name] = copy()
        return result

    monkeypatch.setattr(PhaseTrainer, "train", watched)
    return before, after
