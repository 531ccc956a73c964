"""One phase: which parameters are in which group, what is frozen, what is logged."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_training import TrainShort

from securetune.artifacts import RobustModules, read_json_lines
from securetune.config import TrainingSettings
from securetune.defenses import Defense, ParameterGroup, Phase, find_defense, register_defense, registry
from securetune.errors import ConfigError, RunError
from securetune.models import ChatModel, map_modules
from securetune.training import phase_progress
from securetune.training.parameters import owner_of, split_parameters
from securetune.training.phase_groups import freeze_all_but
from securetune.training.phase_trainer import PhaseTrainer

Watch = Callable[[], list[PhaseTrainer]]


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[PhaseTrainer]:
    """The trainer of each phase, in order."""
    found: list[PhaseTrainer] = []
    original = PhaseTrainer.__init__

    def watched(self: PhaseTrainer, **named: Any) -> None:
        found.append(self)
        original(self, **named)

    monkeypatch.setattr(PhaseTrainer, "__init__", watched)
    return found


def log_of(out: Path, phase: str) -> list[dict]:
    rows = read_json_lines(out / "training_log.jsonl")
    return [row for row in rows if row["phase"] == phase and "update" not in row]


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_phases_are_two_complete_runs(
    tune: str, train_short: TrainShort, trainers: list[PhaseTrainer], tmp_path: Path
) -> None:
    """Each phase has an optimizer of its own, with states for what it trains and for nothing else."""
    train_short(tmp_path / "out", method="swat", tune=tune)
    warmup, main = trainers
    assert warmup.optimizer is not main.optimizer
    for trainer, steps in ((warmup, 4), (main, 6)):
        states = trainer.optimizer.state
        assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(trainer._trained_names)
        assert len(states) == len(trainer._trained_names)
        assert {int(state["step"]) for state in states.values()} == {steps}
    assert warmup._trained_names < main._trained_names


def test_each_phase_runs_the_whole_schedule(train_short: TrainShort, tmp_path: Path) -> None:
    """The schedule of the main phase begins at its peak and ends near 0, whatever the warm-up did."""
    for out, method in ((tmp_path / "swat", "swat"), (tmp_path / "ift", "ift")):
        train_short(out, method=method, warmup_steps=0)
    rates = [row["learning_rate"]["all"] for row in log_of(tmp_path / "swat", "main")]
    assert rates == [row["learning_rate"]["all"] for row in log_of(tmp_path / "ift", "main")]
    assert rates[0] == 1e-2
    assert rates[-1] < 1e-3


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_every_group_is_logged_at_its_rate(tune: str, train_short: TrainShort, tmp_path: Path) -> None:
    """The log shows each group's own learning rate at each step, not only that of the first group."""
    train_short(tmp_path / "out", method="ml-lr", tune=tune, learning_rate_ratio=0.25, warmup_steps=0)
    rows = log_of(tmp_path / "out", "main")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["learning_rate"] == {"robust": 1e-2, "rest": 2.5e-3}
    for row in rows:
        assert row["learning_rate"]["rest"] == pytest.approx(0.25 * row["learning_rate"]["robust"])


def test_the_rest_moves_less_at_a_lower_rate(train_short: TrainShort, tmp_path: Path) -> None:
    """ML-LR's groups do train at their rates: the rest moves by less, Mods_Rob by as much as in IFT."""
    ift = train_short(tmp_path / "ift", method="ift").update
    slow = train_short(tmp_path / "slow", method="ml-lr", learning_rate_ratio=0.01).update
    assert slow.outside.relative < 0.05 * ift.outside.relative
    assert slow.other.relative < 0.05 * ift.other.relative
    assert slow.inside.relative == pytest.approx(ift.inside.relative, rel=0.3)


def test_weight_decay_spares_norms(train_short: TrainShort, trainers: list[PhaseTrainer], tmp_path: Path) -> None:
    """Within each group, norms are not decayed, as in transformers' own optimizer."""
    train_short(tmp_path / "out", method="ml-lr", weight_decay=0.1)
    (trainer,) = trainers
    names = {id(parameter): name for name, parameter in trainer.network.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.0 if "norm" in names[id(parameter)] else 0.1)


def test_lora_names_belong_to_their_modules(tiny_chat_model: ChatModel, manifest: RobustModules) -> None:
    """A LoRA parameter is found by its module, although its name contains none of the module's weight names."""
    names = {module.name for module in map_modules(tiny_chat_model.model)}
    prefix = "base_model.model."
    for module in names:
        assert owner_of(f"{prefix}{module}.lora_A.default.weight", names) == module
        assert owner_of(f"{module}.weight", names) == module
        assert owner_of(f"{module}.bias", names) == module
    assert owner_of(f"{prefix}model.embed_tokens.weight", names) is None
    assert owner_of("model.layers.1.input_layernorm.weight", names) is None


@pytest.mark.parametrize(("other", "where"), [("rest", "rest"), ("robust", "robust"), ("frozen", None)])
def test_where_other_parameters_belong(
    other: str, where: str | None, tiny_chat_model: ChatModel, manifest: RobustModules
) -> None:
    """Embeddings, norms and the head are in the set that `other_parameters` says, or in none."""
    settings = TrainingSettings(method="swat", other_parameters=other)
    modules, names = map_modules(tiny_chat_model.model), [module.name for module in manifest.modules]
    sets = split_parameters(tiny_chat_model.model, modules, names, settings, find_defense("swat"))
    others = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for name in ("robust", "rest"):
        assert (others <= set(getattr(sets, name))) == (name == where)
        assert others.isdisjoint(getattr(sets, name)) == (name != where)
    assert "model.layers.1.mlp.up_proj.weight" in sets.robust
    assert "model.layers.0.mlp.up_proj.weight" in sets.rest


def group(*names: str) -> ParameterGroup:
    return ParameterGroup("robust", names, 1e-3)


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ([group("model.layers.0.self_attn.q_proj.lora_A.weight")], 'group "robust" must match .* 1 match none'),
        ([group()], 'group "robust" must match trainable parameters only; it has 0 names'),
        ([group("model.norm.weight"), group("model.norm.weight")], "must be in exactly one group"),
    ],
)
def test_a_group_that_matches_nothing_is_an_error(
    groups: list[ParameterGroup],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    train_short: TrainShort,
    tmp_path: Path,
) -> None:
    """A group without parameters, or with names that the model does not have, is refused instead of ignored."""
    monkeypatch.setattr(
        find_defense("ift").__class__, "phases", lambda self, context: [Phase("main", 2, tuple(groups))]
    )
    with pytest.raises(ConfigError, match=sentence):
        train_short(tmp_path / "out", method="ift")


def test_freezing(tiny_chat_model: ChatModel) -> None:
    """After freezing, the named parameters require a gradient, and no others."""
    freeze_all_but(tiny_chat_model.model, frozenset({"model.norm.weight"}))
    assert [name for name, p in tiny_chat_model.model.named_parameters() if p.requires_grad] == ["model.norm.weight"]


def test_a_loss_that_is_no_number_stops_the_run(train_short: TrainShort, tmp_path: Path) -> None:
    """A loss that is not finite ends the training with a sentence, instead of being averaged away."""

    class _Broken(Defense):
        def adjust_loss(self, loss: Any, model: Any, inputs: Any) -> Any:
            return loss * float("nan")

    monkeypatched = dict(registry._REGISTERED)
    try:
        register_defense("broken")(_Broken)
        with pytest.raises(RunError, match="main phase: the loss is nan at step 1; a lower learning_rate may help"):
            train_short(tmp_path / "out", method="broken")
    finally:
        registry._REGISTERED.clear()
        registry._REGISTERED.update(monkeypatched)


def test_a_defense_changes_the_loss(train_short: TrainShort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a defense adds to the loss is trained on."""
    first = train_short(tmp_path / "first", method="ift").update
    kind = find_defense("ift").__class__
    monkeypatch.setattr(kind, "adjust_loss", lambda self, loss, model, inputs: loss * 0.0)
    second = train_short(tmp_path / "second", method="ift").update
    assert first.inside.absolute > 0
    assert second.inside.absolute == 0


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_gradient_checkpointing_changes_nothing(tune: str, train_short: TrainShort, tmp_path: Path) -> None:
    """Recomputing activations, with frozen embeddings in the warm-up too, gives the same training."""
    plain = train_short(tmp_path / "plain", method="swat", tune=tune)
    recomputed = train_short(tmp_path / "recomputed", method="swat", tune=tune, gradient_checkpointing=True)
    assert recomputed.update.inside.absolute == pytest.approx(plain.update.inside.absolute, rel=1e-4)
    assert recomputed.update.outside.absolute == pytest.approx(plain.update.outside.absolute, rel=1e-4)


def test_mixed_precision_trains(train_short: TrainShort, tmp_path: Path) -> None:
    """With bf16, both phases train, on float32 weights."""
    result = train_short(tmp_path / "out", method="swat", bf16=True)
    assert result.resolved["bf16"] is True
    assert result.resolved["dtype"] == "float32"
    assert result.update.outside.absolute > 0


def test_epochs_become_steps(train_short: TrainShort, tmp_path: Path) -> None:
    """Without `max_steps`, the main phase has its epochs' steps, the last and smaller one of each epoch included."""
    result = train_short(
        tmp_path / "out",
        method="ift",
        max_steps=None,
        num_train_epochs=1.5,
        per_device_train_batch_size=12,
        gradient_accumulation_steps=3,
    )
    assert result.resolved["main_steps"] == 3  # 40 rows: 4 batches, 2 steps an epoch
    rows = log_of(tmp_path / "out", "main")
    assert rows[-1]["step"] == 3
    assert rows[1]["epoch"] == 1.0


def test_checkpoints_are_few(train_short: TrainShort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase saves one checkpoint a tenth, none at its end, and keeps only the last."""
    saved: list[tuple[int, list[str]]] = []
    original = PhaseTrainer._save_checkpoint

    def watched(self: PhaseTrainer, *arguments: Any) -> None:
        original(self, *arguments)
        saved.append((self.state.global_step, sorted(path.name for path in self.folder.iterdir())))

    monkeypatch.setattr(PhaseTrainer, "_save_checkpoint", watched)
    train_short(tmp_path / "out", method="ift", max_steps=25)
    assert saved == [(step, [f"checkpoint-{step}"]) for step in range(3, 25, 3)]


def test_nothing_is_printed(train_short: TrainShort, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Stdout is for results and stderr for warnings: a training writes to neither."""
    level = logging.getLogger().level
    train_short(tmp_path / "full", method="swat")
    train_short(tmp_path / "lora", method="swat", tune="lora")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().level == level


def test_no_telemetry(train_short: TrainShort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's telemetry is never called, whatever the environment says."""
    from trl.trainer import base_trainer

    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("CI", raising=False)
    sent: list[dict] = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda **named: sent.append(named))
    train_short(tmp_path / "out", method="ift")
    assert sent == []


def test_progress_is_told(train_short: TrainShort, tmp_path: Path) -> None:
    """The caller is told of each step, with the phase's name and its number of steps."""
    seen: list[tuple[str, int, int]] = []
    train_short(tmp_path / "out", lambda what, done, total: seen.append((what, done, total)), method="swat")
    assert seen == [("warmup", n, 4) for n in range(5)] + [("main", n, 6) for n in range(7)]


def test_threads_are_left_alone(train_short: TrainShort, tmp_path: Path) -> None:
    """A caller that set one thread still has one thread afterwards."""
    train_short(tmp_path / "out", method="ift")
    assert torch.get_num_threads() == 1


def test_rewinding_the_log(tmp_path: Path) -> None:
    """Rows after the checkpoint, and a cut-off last line, are dropped; earlier phases stay."""
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"phase": "warmup", "step": 9, "update": {}}\n{"phase": "main", "step": 2}\n{"phase": "main", "step": 3}\n'
        '{"phase": "main", "step": 3, "update": {}}\n{"phase": "ma'
    )
    phase_progress.rewind_log(path, "main", 2)
    assert [(row["phase"], row["step"]) for row in read_json_lines(path)] == [("warmup", 9), ("main", 2)]
