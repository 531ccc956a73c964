"""Protected training in the phases of SWAT and ML-LR: identities, what stays where it was, and going on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import FUSED, make_architecture
from short_training import SHORT, OptionsOf, TrainShort, make_manifest, make_rows
from tiny_models import make_tiny_tokenizer

from securetune.artifacts import TrainingResult
from securetune.config import ModelSettings, TrainingSettings
from securetune.defenses import DefenseContext, ParameterSets
from securetune.defenses.protected_subspace import ProtectedSubspace
from securetune.errors import InputError
from securetune.models import load, map_modules
from securetune.training import train

METHOD = "protected-subspace"
LONGER = (("swat", "full"), ("ml-lr", "lora"))


def weights(out: Path) -> bytes:
    (path,) = (out / "model").glob("*.safetensors")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("schedule", "tune"),
    [("swat", "lora"), ("ml-lr", "full"), *(pytest.param(*each, marks=pytest.mark.long) for each in LONGER)],
)
def test_energy_0_is_swat_or_ml_lr(schedule: str, tune: str, train_short: TrainShort, tmp_path: Path) -> None:
    """With nothing protected, the weights are those of the method whose phases are taken, bit for bit."""
    nothing = {"phases": schedule, "energy": 0, "other_rate": 1}
    train_short(tmp_path / "own", method=METHOD, method_options=nothing, tune=tune, lora={"rank": 2})
    train_short(tmp_path / "theirs", method=schedule, tune=tune, lora={"rank": 2})
    assert weights(tmp_path / "own") == weights(tmp_path / "theirs")


def train_fused(kind: str, folder: Path, tune: str = "full", **options: Any) -> TrainingResult:
    """Train a small model with fused projections; Mods_Rob is its upper layer."""
    tokenizer = make_tiny_tokenizer()
    for what in (make_architecture(*FUSED[kind], vocab_size=len(tokenizer)), tokenizer):
        what.save_pretrained(folder / "start")
    chat = load(str(folder / "start"))
    modules = [module for module in map_modules(chat.model) if module.layer == 1]
    manifest = make_manifest(chat, [module.name for module in modules])
    spread = {module.name: 1.0 + place for place, module in enumerate(map_modules(chat.model))}
    manifest = manifest.model_copy(update={"sensitivities": spread})
    settings = TrainingSettings(**{**SHORT, "method": METHOD, "method_options": options, "tune": tune})
    return train(settings, ModelSettings(name=str(folder / "start")), make_rows(), folder / "out", manifest)


def gathered(folder: Path, **options: Any) -> ProtectedSubspace:
    """Return the defense after it has gathered from the start model; energies are taken to be uniform."""
    chat = load(str(folder / "start"))
    defense = ProtectedSubspace(options)
    names = tuple(name for name, _ in chat.model.named_parameters())
    context = DefenseContext(
        TrainingSettings(), 1e-3, 4, ParameterSets((), names), modules=map_modules(chat.model), tokenizer=chat.tokenizer
    )
    defense.before_training(chat.model, context)
    return defense


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [("gpt2", "swat"), ("phi3", "ml-lr"), pytest.param("gpt-neox", "swat", marks=pytest.mark.long)],
)
def test_fused_projections_stay_protected_through_all_phases(
    kind: str, schedule: str, options_of: OptionsOf, tmp_path: Path
) -> None:
    """After warm-up and main phase W U = W₀ U, with U and W₀ of the start model, while every projection has moved."""
    options = options_of(METHOD, energy=0.6)
    result = train_fused(kind, tmp_path, phases=schedule, **options)
    assert [phase.name for phase in result.phases] == (["warmup", "main"] if schedule == "swat" else ["main"])
    start, tuned = load(str(tmp_path / "start")).model, load(str(tmp_path / "out" / "model")).model
    subspaces = gathered(tmp_path, **options).subspaces
    assert subspaces is not None
    for module in map_modules(start):
        directions = subspaces.directions(module)
        before, after = module.weight_in(start), module.weight_in(tuned)
        torch.testing.assert_close(after @ directions, before @ directions, rtol=1e-4, atol=1e-5)
        assert (after - before).norm() > 1e-3 * before.norm()
        assert 0 < directions.shape[1] < directions.shape[0]


def test_parts_of_a_fused_weight_have_energies_of_their_own(options_of: OptionsOf, tmp_path: Path) -> None:
    """By sensitivity Q, K and V of one weight keep as many directions as their energies say, and no more."""
    options = options_of(METHOD, energy=0.6)
    result = train_fused("gpt2", tmp_path, energy_by="sensitivity", sensitivity_exponent=2, **options)
    found = result.evidence["protected"]
    assert sum(each["energy"] for each in found.values()) / len(found) == pytest.approx(0.6, abs=1e-5)
    subspaces = gathered(tmp_path, **options_of(METHOD, energy=0.99)).subspaces
    assert subspaces is not None
    start, tuned = load(str(tmp_path / "start")).model, load(str(tmp_path / "out" / "model")).model
    for module in map_modules(start):
        update = module.weight_in(tuned) - module.weight_in(start)
        vectors, rank = subspaces.spectra[module.path].vectors, found[module.name]["directions"]
        assert (update @ vectors[:, :rank]).norm() < 1e-3 * update.norm()
        assert (update @ vectors[:, rank]).norm() > 1e-2 * (update @ vectors[:, rank:]).norm()
    ranks = [found[f"transformer.h.1.attn.c_attn[{kind}]"]["directions"] for kind in "QKV"]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[2]


def test_in_the_warm_up_nothing_moves_but_the_robust_modules(
    options_of: OptionsOf, tiny_model_dir: Path, train_short: TrainShort, tmp_path: Path
) -> None:
    """What is frozen there keeps its bits: it takes up no rounding of the projection."""

    class StopError(Exception):
        pass

    def stop(phase: str, step: int, _: int) -> None:
        if phase == "main" and step == 0:
            raise StopError

    from safetensors.torch import load_file

    chosen = {"method": METHOD, "method_options": options_of(METHOD, phases="swat")}
    with pytest.raises(StopError):
        train_short(tmp_path / "out", stop, **chosen)
    moved = load_file(tmp_path / "out" / "phases" / "warmup" / "weights.safetensors")
    start = dict(load(str(tiny_model_dir)).model.named_parameters())
    assert moved
    assert all(".layers.1." in name and not torch.equal(value, start[name]) for name, value in moved.items())


@pytest.mark.parametrize(
    ("phase", "step", "tune"),
    [
        ("warmup", 3, "lora"),
        ("main", 0, "full"),
        *(pytest.param(*each, marks=pytest.mark.long) for each in (("warmup", 3, "full"), ("main", 5, "lora"))),
    ],
)
def test_an_interrupted_training_in_phases_goes_on(
    phase: str, step: int, tune: str, options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """Stopped in the warm-up, at the boundary or in the main phase, it ends with the uninterrupted weights."""

    class StopError(Exception):
        pass

    def stop(name: str, number: int, _: int) -> None:
        if (name, number) == (phase, step):
            raise StopError

    chosen = {
        "method": METHOD, "method_options": options_of(METHOD, phases="swat"), "save_steps": 2, "tune": tune,
        "lora": {"rank": 2, "dropout": 0.25},
    }  # fmt: skip
    whole = train_short(tmp_path / "whole", **chosen)
    with pytest.raises(StopError):
        train_short(tmp_path / "parts", stop, **chosen)
    parts = train_short(tmp_path / "parts", **chosen)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert parts.evidence == whole.evidence


def test_a_step_at_rate_0_leaves_every_bit(options_of: OptionsOf, tmp_path: Path) -> None:
    """What reads an optimizer's state back may take such a step; the weights are then as they were read."""
    train_fused("gpt2", tmp_path, **options_of(METHOD), other_rate=0.5)
    defense = gathered(tmp_path, **options_of(METHOD))
    model = load(str(tmp_path / "out" / "model")).model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    defense.after_step(model, torch.optim.SGD(model.parameters(), lr=0.0))
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1)
    moved = {name: value.detach().clone() for name, value in model.named_parameters()}
    defense.after_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert sum(not torch.equal(value, moved[name]) for name, value in model.named_parameters()) == 8


def test_a_manifest_without_sensitivities_is_one_sentence(
    options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """`energy_by: sensitivity` with a manifest of an earlier version is refused before anything is trained."""
    chosen = {"method": METHOD, "method_options": options_of(METHOD, energy_by="sensitivity")}
    with pytest.raises(InputError, match="needs a manifest with the sensitivities") as caught:
        train_short(tmp_path / "out", **chosen)
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "out").exists()


def test_a_sketch_that_holds_too_little_is_noted(
    options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """`training.json` says that less than the energy is protected, and how much; the training goes on with that."""
    options = options_of(METHOD, energy=0.95, range_finder="randomised", sketch_size=2)
    result = train_short(tmp_path / "out", method=METHOD, method_options=options)
    (note,) = [note for note in result.notes if note.startswith("protected-subspace")]
    assert "the sketch holds too few directions for the energy" in note
    found = result.evidence["protected"].values()
    assert {each["directions"] for each in found} == {2}
    assert all(each["energy_held"] < 0.95 for each in found)
    assert {each["range_finder"] for each in found} == {"randomised"}
