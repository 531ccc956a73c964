"""Directions in a folder: what is written, what uses it, and what is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from short_training import OptionsOf, TrainShort
from typer.testing import CliRunner

from securetune.artifacts import SavedSubspaces, read_artifact
from securetune.cli import app
from securetune.config import ModelSettings, ProtectConfig
from securetune.defenses import find_defense
from securetune.defenses.protected_subspace import protection
from securetune.errors import InputError
from securetune.models import load, map_modules
from securetune.pipeline.protecting import protect

METHOD = "protected-subspace"


def weights(out: Path) -> bytes:
    (path,) = (out / "model").glob("*.safetensors")
    return path.read_bytes()


def config_of(model: object, options: dict[str, Any], **training: Any) -> ProtectConfig:
    return ProtectConfig(
        model=ModelSettings(name=str(model)),
        training={"method_options": options, **training},  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def saved(tiny_model_dir: Path, options_of: OptionsOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directions of the tiny model. Do not write into it."""
    folder = tmp_path_factory.mktemp("gathered") / "subspaces"
    protect(config_of(tiny_model_dir, options_of(METHOD)), folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "copied"))


def test_a_folder_says_what_it_holds(saved: Path, tiny_model_dir: Path) -> None:
    """Its manifest names model, prompts, tokens, energies, widths and ranks, as the tensors have them."""
    found = read_artifact(saved / "subspaces.json", SavedSubspaces)
    chat = load(str(tiny_model_dir))
    assert found.model == chat.identity
    assert (found.prompts, found.settings["energy"]) == (8, 0.7)
    assert set(found.modules) == {module.name for module in map_modules(chat.model)}
    tensors = load_file(saved / "subspaces.safetensors")
    assert len(tensors) == 2 * len(found.inputs) == 2 * 4 * 2  # Q=K=V, O, Gate=Up, Down in each of two layers
    for each in found.inputs:
        assert tensors[f"{each.paths[0]}.directions"].shape == (each.width, each.rank)
        assert 0.7 <= each.energy_held <= 1
        assert float(tensors[f"{each.paths[0]}.values"].sum()) / each.trace == pytest.approx(each.energy_held)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_training_with_a_folder_is_the_one_that_gathers(
    tune: str, saved: Path, options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """The weights are the same bit for bit, and both keep the directions beside the model."""
    more = {"tune": tune, "lora": {"rank": 2}, "max_steps": 3}
    train_short(tmp_path / "gathers", method=METHOD, method_options=options_of(METHOD), **more)
    used = {"subspaces": str(saved), "energy": 0.7}
    train_short(tmp_path / "uses", method=METHOD, method_options=used, **more)
    assert weights(tmp_path / "uses") == weights(tmp_path / "gathers")
    kept = [load_file(tmp_path / each / "subspaces" / "subspaces.safetensors") for each in ("uses", "gathers")]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_less_energy_takes_fewer_of_the_directions(
    saved: Path, options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """A folder that was gathered for more serves a training with less: with the directions it would gather itself."""
    used = {"subspaces": str(saved), "energy": 0.5}
    found = train_short(tmp_path / "uses", method=METHOD, method_options=used, max_steps=2)
    gathers = {**options_of(METHOD), "energy": 0.5}
    expected = train_short(tmp_path / "gathers", method=METHOD, method_options=gathers, max_steps=2)
    assert found.evidence == expected.evidence
    assert found.evidence["protected"]["model.layers.0.mlp.up_proj"]["energy"] == 0.5


class StopError(Exception):
    """Stands for what interrupts a training."""


def stop(_: str, step: int, __: int) -> None:
    """Interrupt behind the first step."""
    if step == 1:
        raise StopError


def test_a_training_that_goes_on_gathers_nothing_again(
    options_of: OptionsOf, train_short: TrainShort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interruption the directions come from the training's own folder."""
    chosen = {"method": METHOD, "method_options": options_of(METHOD), "max_steps": 2}
    with pytest.raises(StopError):
        train_short(tmp_path / "out", stop, **chosen)
    monkeypatch.setattr(protection, "gather_subspaces", None)
    train_short(tmp_path / "out", **chosen)
    (tmp_path / "other").mkdir()
    shutil.copytree(tmp_path / "out" / "subspaces", tmp_path / "other" / "subspaces")
    with pytest.raises(TypeError):  # with other options they would be gathered anew
        train_short(tmp_path / "other", **{**chosen, "method_options": options_of(METHOD, energy=0.6)})


def test_other_prompts_under_the_same_name_are_told(
    options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """A training whose file of requests changed while it was stopped does not go on with other directions."""
    requests = Path(shutil.copy(options_of(METHOD)["prompts"], tmp_path / "requests.txt"))
    chosen = {"method": METHOD, "method_options": options_of(METHOD, prompts=str(requests)), "max_steps": 2}
    with pytest.raises(StopError):
        train_short(tmp_path / "out", stop, **chosen)
    requests.write_text("\n".join(requests.read_text().splitlines()[1:]))
    with pytest.raises(InputError, match="was gathered from other prompts, directions or sensitivities"):
        train_short(tmp_path / "out", **chosen)


def rewritten(folder: Path, **changes: Any) -> None:
    """Change fields of the manifest."""
    content = json.loads((folder / "subspaces.json").read_text())
    (folder / "subspaces.json").write_text(json.dumps({**content, **changes}))


def with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor], str], None]) -> None:
    """Change the tensors, and the hash with them, as somebody would who means it."""
    tensors = load_file(folder / "subspaces.safetensors")
    change(tensors, "model.layers.0.mlp.down_proj")
    save_file(tensors, folder / "subspaces.safetensors")
    rewritten(folder, weights_hash=hashlib.sha256((folder / "subspaces.safetensors").read_bytes()).hexdigest())


def cut_off(folder: Path) -> None:
    content = (folder / "subspaces.safetensors").read_bytes()
    (folder / "subspaces.safetensors").write_bytes(content[:-40])


def huge_header(folder: Path) -> None:
    (folder / "subspaces.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def flipped(folder: Path) -> None:
    content = bytearray((folder / "subspaces.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "subspaces.safetensors").write_bytes(content)


def not_a_number(tensors: dict[str, torch.Tensor], path: str) -> None:
    tensors[f"{path}.directions"][0, 0] = float("nan")


def not_orthonormal(tensors: dict[str, torch.Tensor], path: str) -> None:
    tensors[f"{path}.directions"] *= 2


def rising(tensors: dict[str, torch.Tensor], path: str) -> None:
    tensors[f"{path}.values"] = tensors[f"{path}.values"].flip(0).contiguous()


def half(tensors: dict[str, torch.Tensor], path: str) -> None:
    tensors[f"{path}.directions"] = tensors[f"{path}.directions"].half()


def of_another_shape(tensors: dict[str, torch.Tensor], path: str) -> None:
    tensors[f"{path}.directions"] = tensors[f"{path}.directions"].T.contiguous()


SPOILT: list[tuple[Callable[[Path], Any], str]] = [
    (shutil.rmtree, "must be a folder that `securetune protect` or a training wrote; got none"),
    (lambda folder: (folder / "subspaces.json").unlink(), "subspaces.json: no such file"),
    (lambda folder: (folder / "subspaces.json").write_text("{"), "not a readable JSON file"),
    (lambda folder: (folder / "subspaces.json").write_text("[" * 100_000), "not a readable JSON file"),
    (lambda folder: rewritten(folder, format="securetune.subspaces/9"), 'format "securetune.subspaces/1"; got format'),
    (lambda folder: rewritten(folder, tokens=0), "subspaces.json: tokens: Input should be greater than or equal to 1"),
    (lambda folder: rewritten(folder, inputs=[{"paths": []}]), "subspaces.json: inputs.0.paths: List should have"),
    (lambda folder: rewritten(folder, inputs=[]), "must hold what subspaces.json names; 16 tensors differ"),
    (lambda folder: (folder / "subspaces.safetensors").unlink(), "subspaces.safetensors: no such file"),
    (cut_off, "subspaces.safetensors: cannot be read as safetensors"),
    (huge_header, "subspaces.safetensors: cannot be read as safetensors"),
    (flipped, "subspaces.safetensors: is not the file that subspaces.json speaks of (its hash differs)"),
    (lambda folder: with_tensors(folder, of_another_shape), "1 tensors differ, such as model.layers.0.mlp.down_proj"),
    (lambda folder: with_tensors(folder, not_a_number), "model.layers.0.mlp.down_proj: its directions must be ortho"),
    (lambda folder: with_tensors(folder, not_orthonormal), "its directions must be orthonormal"),
    (lambda folder: with_tensors(folder, rising), "its values must be finite, at least 0, and in descending order"),
    (lambda folder: with_tensors(folder, half), "values must be float64 and directions float32; got"),
    (lambda folder: (folder / "prompts.jsonl").unlink(), "prompts.jsonl: no such file"),
    (lambda folder: (folder / "prompts.jsonl").write_text('{"prompt": "x"}\n'), "holds other prompts than the dir"),
]


@pytest.mark.parametrize(("spoil", "sentence"), SPOILT, ids=[str(place) for place in range(len(SPOILT))])
def test_a_spoilt_folder_is_one_sentence(
    spoil: Callable[[Path], Any], sentence: str, copied: Path, train_short: TrainShort, tmp_path: Path
) -> None:
    """Broken, cut off or hostile, it is refused without a traceback, before anything is trained."""
    spoil(copied)
    chosen = {"method": METHOD, "method_options": {"subspaces": str(copied), "energy": 0.7}}
    with pytest.raises(InputError) as caught:
        train_short(tmp_path / "out", **chosen)
    assert sentence in str(caught.value)
    assert len(set(caught.value.problems)) == 1
    assert not (tmp_path / "out" / "model").exists()


def test_another_models_directions_are_refused(
    copied: Path, base_model: str, train_short: TrainShort, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Of a model with other weights, before any are loaded; of more energy than was gathered, or for what it lacks."""
    with pytest.raises(InputError, match="whose weights differ from those of") as caught:
        find_defense(METHOD, {"subspaces": str(copied), "energy": 0.7}).check(ModelSettings(name=base_model))
    assert len(caught.value.problems) == 1
    with pytest.raises(InputError, match=r"was gathered for an energy of 0\.7 at .*; got energy 0\.8"):
        train_short(tmp_path / "more", method=METHOD, method_options={"subspaces": str(copied), "energy": 0.8})
    content = json.loads((copied / "subspaces.json").read_text())
    content["inputs"][0]["paths"] = content["inputs"][0]["paths"][:1]
    rewritten(copied, inputs=content["inputs"])
    with pytest.raises(InputError, match=r"has no directions for 2 of 14 weights, such as model\.layers\.0\.self_attn"):
        train_short(tmp_path / "less", method=METHOD, method_options={"subspaces": str(copied), "energy": 0.7})


def test_the_command(tiny_model_dir: Path, options_of: OptionsOf, tmp_path: Path) -> None:
    """It says what it wrote, leaves a folder alone that holds the same, and refuses others and idle options."""
    options = [f"training.method_options.{key}={value}" for key, value in options_of(METHOD).items()]
    flags = [part for option in options for part in ("--set", option)]
    command = ["protect", str(tiny_model_dir), "--out", str(tmp_path / "out"), *flags]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.stderr
    assert "14 projections with 8 inputs: " in first.stdout
    written = (tmp_path / "out" / "subspaces.safetensors").stat().st_mtime_ns
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout)["format"] == "securetune.subspaces/1"
    assert (tmp_path / "out" / "subspaces.safetensors").stat().st_mtime_ns == written
    other = CliRunner().invoke(app, [*command, "--set", "training.method_options.energy=0.6"])
    assert other.exit_code == 2
    assert "holds other directions. Choose another folder" in other.stderr
    wrong = ["--set", "training.method_options.phases=swat", "--set", "training.method_options.protect=sensitive"]
    refused = CliRunner().invoke(app, ["protect", "no-model", "--out", str(tiny_model_dir), *wrong])
    assert refused.exit_code == 2
    for sentence in ("no-model", "must be a new folder", "phases is for the training", "Give --modules"):
        assert sentence in refused.stderr
    unknown = CliRunner().invoke(app, [*command, "--set", "training.max_steps=3"])
    assert "training.max_steps: unknown key" in unknown.stderr
