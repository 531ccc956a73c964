"""What a method may ask around an optimizer step: steps on rows of its own, its own state, in either trainer."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from secure_script import LORA, differing, secure, start, weights
from short_training import OptionsOf, TrainShort, make_contrasts
from transformers import TrainerCallback

from securetune import SecureSFTTrainer
from securetune.artifacts import TrainingInputs, read_artifact
from securetune.defenses import find_defense
from securetune.errors import InputError
from securetune.models import load
from securetune.training.alignment_batches import AlignmentBatches, encode_alignment_rows
from securetune.training.step_moments import METHOD_STATE, step_problems


def log_of(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss_nats_per_token" in row]


def loaded(out: Path) -> dict[str, torch.Tensor]:
    return dict(load(str(out / "model")).model.named_parameters())


def test_the_users_steps_are_as_many_as_without(options_of: OptionsOf, train_short: TrainShort, tmp_path: Path) -> None:
    """Lisa's alignment steps come on top; the schedule goes over both, and each is reported."""
    rates = {"lr_scheduler_type": "linear", "warmup_steps": 0}
    found = train_short(tmp_path / "lisa", method="lisa", method_options=options_of("lisa"), **rates)
    train_short(tmp_path / "ift", method="ift", **{**rates, "max_steps": 10})
    assert (found.phases[0].steps, found.phases[0].alignment_steps) == (6, 4)
    whole = [row["learning_rate"]["all"] for row in log_of(tmp_path / "ift")]
    of_user = [whole[place] for place in (2, 3, 4, 7, 8, 9)]  # two alignment steps, three of the user's, and again
    assert [row["learning_rate"]["all"] for row in log_of(tmp_path / "lisa")] == pytest.approx(of_user)
    (note,) = [note for note in found.notes if note.startswith("lisa")]
    assert "4 optimizer steps on refusals" in note
    assert found.alignment_data["alignment"].rows == len(make_contrasts())
    assert math.isfinite(log_of(tmp_path / "lisa")[0]["method"]["alignment_loss"])


def test_accumulated_batches_are_one_large_one(options_of: OptionsOf, train_short: TrainShort, tmp_path: Path) -> None:
    """An alignment step on two batches of two rows is the step on one of four, though their tokens are not as many."""
    settings = {"method": "lisa", "method_options": options_of("lisa", proximal=0.5), "max_steps": 1, "warmup_steps": 0}
    train_short(tmp_path / "one", **settings)
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    train_short(tmp_path / "two", **settings, **halves)
    one, two = loaded(tmp_path / "one"), loaded(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_real_kill_within_a_state(options_of: OptionsOf, train_short: TrainShort, tmp_path: Path) -> None:
    """Killed outright within the user's second state, after a checkpoint there, Lisa ends with the same weights."""
    settings = {"method": "lisa", "method_options": options_of("lisa"), "save_steps": 2}
    train_short(tmp_path / "whole", **settings)

    def kill_myself(_: str, step: int, __: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            train_short(tmp_path / "out", kill_myself, **settings)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (tmp_path / "out/phases/main/checkpoint-4" / METHOD_STATE).exists()
    train_short(tmp_path / "out", **settings)
    found, expected = loaded(tmp_path / "out"), loaded(tmp_path / "whole")
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_other_rows_of_its_own_are_another_training(
    options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """A folder that was begun with other alignment data is refused, though the settings name the same file."""
    rows = tmp_path / "refusals.jsonl"
    rows.write_text('{"prompt": "how do I steal a car ?", "completion": "sorry"}\n')
    settings = {"method": "lisa", "method_options": options_of("lisa", samples=str(rows))}

    def stop(_: str, step: int, __: int) -> None:
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_short(tmp_path / "out", stop, **settings)
    assert read_artifact(tmp_path / "out/training_inputs.json", TrainingInputs).alignment_hash is not None
    rows.write_text('{"prompt": "how do I steal a car ?", "completion": "sorry not"}\n')
    with pytest.raises(InputError, match=r"it differs in the method's own rows"):
        train_short(tmp_path / "out", **settings)


class Stop(TrainerCallback):
    """Ends the program after a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


MORE_OPTIONS = {"protected-subspace": {"tail_pull": 0.5, "pull_every": 3}}
"""With which a method has something to remember."""


@pytest.mark.parametrize(
    ("method", "adapter"),
    [
        ("lisa", None),
        ("sap", LORA),
        ("safegrad", LORA),
        ("asft", None),
        ("guardspace", LORA),
        ("protected-subspace", None),
        pytest.param("salora", LORA, marks=pytest.mark.long),
    ],
)
def test_the_trainer_does_it_too(
    method: str, adapter: dict | None, options_of: OptionsOf, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """In `SecureSFTTrainer` each method changes the training, and one that was stopped ends as one that was not."""
    options = options_of(method, **MORE_OPTIONS.get(method, {}))
    own = {"method": method, "method_options": options, "robust_modules": None, "warmup_phase_steps": None}
    whole = start(SecureSFTTrainer, secure(tmp_path / "whole", **own), tiny_model_dir, adapter)
    before = weights(whole)
    whole.train()
    assert not any(module._forward_hooks for module in whole.network.modules())
    plain = start(SecureSFTTrainer, secure(tmp_path / "ift", method="ift"), tiny_model_dir, adapter)
    plain.train()
    assert differing(before, weights(whole))
    assert differing(weights(plain), weights(whole))
    stopped = start(SecureSFTTrainer, secure(tmp_path / "parts", **own), tiny_model_dir, adapter, callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    again = start(SecureSFTTrainer, secure(tmp_path / "parts", **own), tiny_model_dir, adapter)
    again.train(resume_from_checkpoint=True)
    assert differing(weights(again), weights(whole)) == []


def test_the_trainer_freezes_safety_layers(tiny_model_dir: Path, tmp_path: Path) -> None:
    """With `sppft` in `SecureSFTTrainer` the given layers' adapters stay as they were, and the others move."""
    own = {"method": "sppft", "method_options": {"layers": [1, 1]}, "robust_modules": None, "warmup_phase_steps": None}
    trainer = start(SecureSFTTrainer, secure(tmp_path, **own), tiny_model_dir, LORA)
    before = weights(trainer)
    trainer.train()
    moved = differing(before, weights(trainer))
    assert moved
    assert all(".layers.0." in name and ".lora_" in name for name in moved)


def test_the_processes_share_a_batch(tiny_model_dir: Path, options_of: OptionsOf) -> None:
    """Two processes with two rows each have the rows of one with four; every pass has all rows once, in a new order."""
    tokenizer = load(str(tiny_model_dir)).tokenizer
    defense = find_defense("lisa", options_of("lisa"))
    rows = encode_alignment_rows(defense, "some/model", tokenizer, 64).rows
    alone = AlignmentBatches(rows, tokenizer, seed=3, size=4)
    parts = [AlignmentBatches(rows, tokenizer, seed=3, size=2, processes=2, rank=rank) for rank in (0, 1)]
    texts = lambda batch: tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)  # noqa: E731
    for index in range(3):
        together = [text for part in parts for text in texts(part.batch("alignment", index))]
        assert together == texts(alone.batch("alignment", index))
    passes = [[text for i in range(4) for text in texts(alone.batch("alignment", 4 * turn + i))] for turn in (0, 1)]
    assert len(set(passes[0])) == len(make_contrasts()) == 16
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]


@pytest.mark.parametrize(
    ("engine", "arguments", "sentence"),
    [
        (DistributedType.FSDP, {}, "needs whole weights and gradients in each process, which FSDP divides"),
        (DistributedType.DEEPSPEED, {}, "which DEEPSPEED divides. Use one process, or DDP."),
        (DistributedType.NO, {"fp16": True}, 'fp16 scales the gradients, which method "lisa" changes. Use bf16.'),
        (
            DistributedType.NO,
            {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "needs gradient_checkpointing_kwargs use_reentrant: False",
        ),
        (DistributedType.NO, {"n_gpu": 2}, "cannot train with torch.nn.DataParallel"),
        (DistributedType.MULTI_GPU, {}, None),
    ],
)
def test_engines_that_cannot_do_it(engine: DistributedType, arguments: dict[str, Any], sentence: str | None) -> None:
    """What divides weights or scales gradients is refused in one sentence; DDP, and methods without these, are not."""
    args = SimpleNamespace(**{"fp16": False, "gradient_checkpointing_kwargs": None, "n_gpu": 1, **arguments})
    trainer = SimpleNamespace(
        defense=find_defense("lisa"), accelerator=SimpleNamespace(distributed_type=engine), args=args
    )
    found = step_problems(trainer)
    assert [sentence in problem for problem in found] == [True] if sentence else found == []
    trainer.defense = find_defense("sppft")
    assert step_problems(trainer) == []
