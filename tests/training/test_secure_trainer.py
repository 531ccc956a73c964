"""`SecureSFTTrainer`: what a script that uses TRL gets by changing one line."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from secure_script import LORA, SHORT, UPPER, differing, secure, start, weights
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer, TrlParser

from securetune import SecureSFTConfig, SecureSFTTrainer
from securetune.artifacts import RobustModules, write_json
from securetune.errors import ArtifactError, ConfigError


@pytest.fixture(params=[None, LORA, {**LORA, "use_dora": True}], ids=["full", "lora", "dora"])
def adapter(request: pytest.FixtureRequest) -> dict | None:
    return request.param


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "ml-lr", "learning_rate_ratio": 1.0},
        {"method": "swat", "warmup_phase_steps": 0},
        {"method": "ift", "robust_modules": None},
    ],
    ids=["ratio 1", "no warm-up", "ift"],
)
def test_what_comes_down_to_plain_fine_tuning_is_trls(
    settings: dict, adapter: dict | None, tiny_model_dir: Path, tmp_path: Path
):
    """A ratio of 1 and a warm-up of 0 end with the weights of TRL's own trainer, bit for bit."""
    plain = start(SFTTrainer, SFTConfig(str(tmp_path / "trl"), **SHORT), tiny_model_dir, adapter)
    plain.train()
    ours = start(SecureSFTTrainer, secure(tmp_path / "ours", **settings), tiny_model_dir, adapter)
    ours.train()
    assert differing(weights(ours), weights(plain)) == []
    assert [row["loss"] for row in ours.state.log_history[:-1]] == [row["loss"] for row in plain.state.log_history[:-1]]


def test_the_warm_up_trains_the_robust_modules_alone(adapter: dict | None, tiny_model_dir: Path, tmp_path: Path):
    """Before the main phase nothing else has moved; after it everything that may train has."""
    seen: list[dict[str, torch.Tensor]] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            seen.append({name: value.detach().clone() for name, value in model.named_parameters()})

    trainer = start(SecureSFTTrainer, secure(tmp_path), tiny_model_dir, adapter, callbacks=[Watch()])
    trainable = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    at_warm_up, at_main = seen
    moved = set(differing(at_warm_up, at_main))
    robust = {name for name in trainable if any(f"{path}." in name for path in UPPER)}
    assert robust
    # An adapter's A gets no gradient as long as its B is 0: in the first step of the warm-up, so not in all four.
    assert moved == robust
    assert set(differing(at_main, weights(trainer))) == trainable
    assert {name for name, value in trainer.model.named_parameters() if value.requires_grad} == trainable


def test_a_ratio_of_zero_leaves_the_rest_as_it_was(adapter: dict | None, tiny_model_dir: Path, tmp_path: Path):
    """The reviewers' ablation: everything outside Mods_Rob is bit-identical afterwards."""
    trainer = start(
        SecureSFTTrainer, secure(tmp_path, method="ml-lr", learning_rate_ratio=0.0), tiny_model_dir, adapter
    )
    before = weights(trainer)
    trainer.train()
    moved = differing(before, weights(trainer))
    assert moved
    assert all(any(f"{path}." in name for path in UPPER) for name in moved)


def test_every_group_is_logged_with_its_phase(tiny_model_dir: Path, tmp_path: Path):
    """Each log has the phase, each group's learning rate, and how far each has moved."""
    config = secure(tmp_path, method="ml-lr", learning_rate_ratio=0.1, log_update_norms=True, warmup_steps=0.0)
    trainer = start(SecureSFTTrainer, config, tiny_model_dir)
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert first["phase"] == "main"
    assert first["learning_rate/robust"] == pytest.approx(10 * first["learning_rate/rest"])
    assert 0 < first["update_norm/rest"] < last["update_norm/rest"]
    assert first["update_norm/robust"] > first["update_norm/rest"]


class Stop(TrainerCallback):
    """Ends the program, as if it had been killed, at one step of one phase."""

    def __init__(self, phase: str, step: int) -> None:
        self.phase, self.step, self.inside = phase, step, "main"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        phase = "warmup" if args.output_dir.endswith("warmup") else "main"
        if (phase, state.global_step) == (self.phase, self.step):
            raise KeyboardInterrupt


@pytest.mark.parametrize(("phase", "step"), [("warmup", 1), ("warmup", 3), ("main", 1), ("main", 3), ("main", 5)])
def test_an_interrupted_training_goes_on_in_its_phase(
    phase: str, step: int, adapter: dict | None, tiny_model_dir: Path, tmp_path: Path
):
    """Stopped in either phase, before or after a checkpoint, it ends with the weights of an uninterrupted one."""
    whole = start(SecureSFTTrainer, secure(tmp_path / "whole"), tiny_model_dir, adapter)
    whole.train()
    config = secure(tmp_path / "stopped")
    stopped = start(SecureSFTTrainer, config, tiny_model_dir, adapter, callbacks=[Stop(phase, step)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    again = start(SecureSFTTrainer, config, tiny_model_dir, adapter)
    again.train(resume_from_checkpoint=True)
    assert differing(weights(again), weights(whole)) == []


def test_resuming_at_the_boundary_repeats_no_warm_up(tiny_model_dir: Path, tmp_path: Path):
    """The warm-up was complete and the main phase had no checkpoint yet: only the main phase runs."""
    started: list[str] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            started.append(Path(args.output_dir).name)

    stopped = start(SecureSFTTrainer, secure(tmp_path), tiny_model_dir, callbacks=[Stop("main", 1)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    start(SecureSFTTrainer, secure(tmp_path), tiny_model_dir, callbacks=[Watch()]).train(resume_from_checkpoint=True)
    assert started == [tmp_path.name]


def test_a_manifest_a_path_and_a_list_mean_the_same(tiny_model_dir: Path, manifest: RobustModules, tmp_path: Path):
    """However the robust modules are given, the same parameters are in the same group; adapters do not hide a model."""
    write_json(tmp_path / "modules.json", manifest)
    names = [module.name for module in manifest.modules]
    sets = [
        start(SecureSFTTrainer, secure(tmp_path / "out", robust_modules=choice), tiny_model_dir, adapter)._sets
        for adapter in (None, LORA)
        for choice in (manifest, tmp_path / "modules.json", str(tmp_path / "modules.json"), names)
    ]
    assert sets[0] == sets[1] == sets[2] == sets[3] != sets[4] == sets[5] == sets[6] == sets[7]


def test_another_models_manifest_is_refused(tiny_model_dir: Path, manifest: RobustModules, tmp_path: Path):
    """Before anything is trained, with the names of both."""
    identity = manifest.model.model_copy(update={"weights_fingerprint": "of others"})
    other = manifest.model_copy(update={"model": identity})
    with pytest.raises(ArtifactError, match="whose weights differ"):
        start(SecureSFTTrainer, secure(tmp_path, robust_modules=other), tiny_model_dir)


def test_a_path_that_is_no_projection_is_refused(tiny_model_dir: Path, tmp_path: Path):
    """The sentence names it, and what projections are called here."""
    names = [*UPPER, "model.layers.9.mlp.up_proj"]
    with pytest.raises(ArtifactError, match=r'1 of 5 paths .* "model\.layers\.9\.mlp\.up_proj"; its projections are'):
        start(SecureSFTTrainer, secure(tmp_path, robust_modules=names), tiny_model_dir)


def test_mistakes_in_the_settings_come_together():
    """Each with its name and what was given, before a model is loaded."""
    with pytest.raises(ConfigError) as caught:
        SecureSFTConfig(
            "out", method="swad", learning_rate_ratio=3.0, warmup_phase_steps=1, warmup_phase_epochs=-1.0, use_cpu=True,
            bf16=False,
        )  # fmt: skip
    text = "\n".join(caught.value.problems)
    assert 'method "swad" is unknown. Did you mean "swat"?' in text
    assert "learning_rate_ratio" in text
    assert "warmup_phase_steps and warmup_phase_epochs say the same" in text
    assert "warmup_phase_epochs must be above 0; got -1.0" in text
    with pytest.raises(ConfigError, match='robust_modules is needed by method "ml-lr"'):
        SecureSFTConfig("out", method="ml-lr", use_cpu=True, bf16=False)


def test_the_settings_can_be_written_as_json(manifest: RobustModules, tmp_path: Path):
    """Loggers and checkpoints write them; a manifest is written as its modules."""
    written = json.loads(secure(tmp_path, robust_modules=manifest).to_json_string())
    assert written["robust_modules"] == [module.name for module in manifest.modules]
    assert (written["method"], written["warmup_phase_steps"]) == ("swat", 4)


@dataclass
class ParsedConfig(SecureSFTConfig):
    """The same; the check of types in tests would mind transformers' own defaults, whole numbers for floats."""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["auto"], "auto"),
        (["found/modules.json"], "found/modules.json"),
        (["model.layers.1.mlp.up_proj"], ["model.layers.1.mlp.up_proj"]),
        (["a.q_proj", "b.q_proj"], ["a.q_proj", "b.q_proj"]),
    ],
)
def test_command_lines_and_files_of_trl_scripts(given: list[str], expected: Any, tmp_path: Path):
    """TRL's parser, which its scripts use, takes all settings, also those that are a list or an object."""
    common = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--method", "ml-lr"]
    parser = TrlParser((ParsedConfig,))
    (config,) = parser.parse_args_and_config([*common, "--robust_modules", *given, "--learning_rate_ratio", "0.25"])
    assert (config.robust_modules, config.learning_rate_ratio) == (expected, 0.25)
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "robust_modules": given}
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    (config,) = parser.parse_args_and_config(["--config", str(tmp_path / "config.yaml")])
    assert config.robust_modules == expected
    own = ["--method", "l2-sp", "--method_options", '{"strength": 3.0}', *common[:-2]]
    assert parser.parse_args_and_config(own)[0].method_options == {"strength": 3.0}
    with pytest.raises(ConfigError, match=r"^method_options must be an object such as .*; got 'strength'$"):
        parser.parse_args_and_config([*own[:2], "--method_options", "strength", *common[:-2]])


def test_epochs_of_the_warm_up_are_passes_over_the_data(tiny_model_dir: Path, tmp_path: Path):
    """40 rows in batches of 4: a warm-up of 0.5 epochs has 5 steps; unset, it has half the main phase's."""
    for settings, steps in (
        ({"warmup_phase_steps": None, "warmup_phase_epochs": 0.5}, 5),
        ({"warmup_phase_steps": None}, 3),
        ({"warmup_phase_steps": None, "max_steps": -1, "num_train_epochs": 2.0}, 10),
    ):
        trainer = start(SecureSFTTrainer, secure(tmp_path, **settings), tiny_model_dir)
        assert next(phase.steps for phase in trainer.defense.phases(trainer._context(trainer._sets))) == steps


def test_a_plain_configuration_is_plain_fine_tuning(tiny_model_dir: Path, tmp_path: Path):
    """With TRL's own `SFTConfig`, TRL's own training."""
    trainer = start(SecureSFTTrainer, SFTConfig(str(tmp_path), **{**SHORT, "save_strategy": "no"}), tiny_model_dir)
    trainer.train()
    assert "phase" not in trainer.state.log_history[0]


def test_what_is_saved_is_an_ordinary_model(adapter: dict | None, tiny_model_dir: Path, tmp_path: Path):
    """`save_model` writes what transformers and PEFT load, with the same logits."""
    trainer = start(SecureSFTTrainer, secure(tmp_path / "run"), tiny_model_dir, adapter)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    ids = torch.tensor([[2, 5, 8, 9, 10, 6]])
    if adapter:
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "saved"))
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits)


def test_callbacks_added_and_removed_later_count_in_both_phases(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As with TRL's trainer: what was added is called, and what was removed prints nothing."""
    phases: list[str] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            phases.append(Path(args.output_dir).name)

    trainer = start(SecureSFTTrainer, secure(tmp_path), tiny_model_dir)
    trainer.add_callback(Watch())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert phases == ["_warmup", tmp_path.name]
    assert capsys.readouterr().out == ""


def test_the_users_kind_of_optimizer_gets_the_groups(tiny_model_dir: Path, tmp_path: Path):
    """A class given to the trainer is what both phases use, each with its own groups."""
    kinds: list[tuple[str, set[str]]] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            inner = getattr(optimizer, "optimizer", optimizer)
            kinds.append((type(inner).__name__, {group["group_name"] for group in inner.param_groups}))

    choice = (torch.optim.SGD, {"lr": 1.0, "momentum": 0.9})
    start(
        SecureSFTTrainer, secure(tmp_path), tiny_model_dir, callbacks=[Watch()], optimizer_cls_and_kwargs=choice
    ).train()
    assert kinds == [("SGD", {"robust"}), ("SGD", {"all"})]


def test_a_finished_optimizer_is_refused(tiny_model_dir: Path, tmp_path: Path):
    """It could have neither the groups nor a phase of its own; the sentence says what to give instead."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(ConfigError, match="Give optimizer_cls_and_kwargs or `optim` instead"):
        start(SecureSFTTrainer, secure(tmp_path), tiny_model_dir, optimizers=(optimizer, None))


def test_what_an_earlier_training_left_is_not_taken_up(tiny_model_dir: Path, tmp_path: Path):
    """A new training in the same folder begins its warm-up anew, also when it is interrupted and resumed."""
    start(SecureSFTTrainer, secure(tmp_path / "used", learning_rate=1.0), tiny_model_dir).train()
    for checkpoint in (tmp_path / "used").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    stopped = start(SecureSFTTrainer, secure(tmp_path / "used"), tiny_model_dir, callbacks=[Stop("warmup", 1)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    again = start(SecureSFTTrainer, secure(tmp_path / "used"), tiny_model_dir)
    again.train(resume_from_checkpoint=True)
    whole = start(SecureSFTTrainer, secure(tmp_path / "new"), tiny_model_dir)
    whole.train()
    assert differing(weights(again), weights(whole)) == []
