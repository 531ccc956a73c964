"""Update norms against what can be computed from the files."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from short_training import TrainShort

from securetune.artifacts import RobustModules
from securetune.models import ChatModel, map_modules

LORA = {"tune": "lora", "lora": {"rank": 2, "alpha": 6.0}}


def norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([tensor.detach().double().square().sum() for tensor in tensors]).sum().sqrt())


def test_full_tuning(train_short: TrainShort, manifest: RobustModules, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The norms are those of the difference between the two checkpoints on disk."""
    result = train_short(tmp_path / "out", method="swat")
    start = load_file(tiny_model_dir / "model.safetensors")
    end = load_file(tmp_path / "out/model/model.safetensors")
    robust = {f"{module.name}.weight" for module in manifest.modules}
    sets = {
        "inside": robust,
        "outside": {name for name in start if "_proj" in name} - robust,
        "other": {name for name in start if "_proj" not in name},
    }
    for field, names in sets.items():
        found = getattr(result.update, field)
        expected = norm([end[name] - start[name] for name in names])
        assert found.absolute == pytest.approx(expected, rel=1e-5)
        assert found.relative == pytest.approx(expected / norm([start[name] for name in names]), rel=1e-5)
    assert len(result.update.modules) == 14
    name = "model.layers.0.mlp.up_proj"
    change = norm([end[f"{name}.weight"] - start[f"{name}.weight"]]) / norm([start[f"{name}.weight"]])
    assert result.update.modules[name] == pytest.approx(change, rel=1e-5)


def test_lora(train_short: TrainShort, tiny_chat_model: ChatModel, tmp_path: Path) -> None:
    """Under LoRA the norms are those that merging the adapter into the start model would give."""
    result = train_short(tmp_path / "out", method="swat", **LORA)
    modules = map_modules(tiny_chat_model.model)
    start = {module.name: tiny_chat_model.model.get_parameter(module.weight_name).clone() for module in modules}
    merged = PeftModel.from_pretrained(tiny_chat_model.model, str(tmp_path / "out/model")).merge_and_unload()
    for module in modules:
        change = norm([merged.get_parameter(module.weight_name).detach() - start[module.name]])
        assert result.update.modules[module.name] == pytest.approx(change / norm([start[module.name]]), rel=1e-3)
    assert result.update.other is None


@pytest.mark.parametrize("tune", [{"tune": "full"}, LORA], ids=["full", "lora"])
def test_the_warm_up_moves_only_the_inside(tune: dict, train_short: TrainShort, tmp_path: Path) -> None:
    """In the warm-up's record the outside has moved by exactly 0; in the main phase's, it has moved."""
    warmup, main = train_short(tmp_path / "out", method="swat", **tune).phases
    assert warmup.update.inside.absolute > 0
    assert warmup.update.outside.absolute == 0.0
    assert main.update.outside.absolute > 0
    assert [group.name for group in warmup.groups] == ["robust"]


def test_without_a_manifest(tiny_chat_model: ChatModel, rows: list, tmp_path: Path) -> None:
    """Plain fine-tuning without a manifest has no inside: all modules are outside."""
    from securetune.config import TrainingSettings
    from securetune.training import train

    settings = TrainingSettings(method="ift", max_steps=2, learning_rate=1e-2)
    update = train(settings, tiny_chat_model.settings, rows, tmp_path / "out").update
    assert update.inside is None
    assert update.outside.absolute > 0
