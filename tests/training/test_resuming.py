"""A training that is killed at any moment goes on when it is started again, and ends with the same result."""

import importlib
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from short_training import TrainShort

from securetune.errors import InputError
from securetune.training import phase_run, phase_trainer

training_module = importlib.import_module("securetune.training.train")  # the package has a function of that name

LORA = {"tune": "lora", "lora": {"rank": 2, "dropout": 0.25}}
KINDS: dict[str, dict[str, Any]] = {
    "swat": {"method": "swat"},
    "swat, LoRA with dropout": {"method": "swat", **LORA},
    "ml-lr over two epochs with accumulation": {
        "method": "ml-lr",
        "max_steps": 12,
        "gradient_accumulation_steps": 2,
        "save_steps": 3,
    },
}
MOMENTS = [
    *[("swat", phase, step) for phase, step in [("warmup", 1), ("warmup", 3), ("main", 0), ("main", 1), ("main", 5)]],
    *[("swat, LoRA with dropout", phase, step) for phase, step in [("warmup", 3), ("main", 0), ("main", 5)]],
    *[("ml-lr over two epochs with accumulation", "main", step) for step in (2, 5, 11)],
]


STEPS = {"warmup": range(1, 5), "boundary": range(1), "main": range(1, 7)}
"""Of SWAT's phases; before the main one's first step the warm-up's result is complete."""


class Killed(BaseException):
    """Stands for a signal: no `except Exception` may stop it."""


def kill_at(phase: str, step: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if (what, done) == (phase, step):
            raise Killed

    return progress


def content(out: Path) -> dict[str, Any]:
    """Return everything that must be the same: all files but the durations."""
    files = {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "training.json"
    }
    result = json.loads((out / "training.json").read_text())
    result.pop("duration_seconds")
    for phase in result["phases"]:
        phase.pop("duration_seconds")
    return {**files, "training.json": result}


@pytest.fixture(scope="module")
def uninterrupted(train_short: TrainShort, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict]:
    """Train each kind once without interruption, and return what its folder holds."""
    found: dict[str, dict] = {}

    def get(kind: str) -> dict:
        if kind not in found:
            out = tmp_path_factory.mktemp("whole") / "out"
            train_short(out, **KINDS[kind])
            found[kind] = content(out)
        return found[kind]

    return get


@pytest.mark.parametrize(("kind", "phase", "step"), MOMENTS)
def test_killed_and_started_again(
    kind: str, phase: str, step: int, uninterrupted: Callable, train_short: TrainShort, tmp_path: Path
) -> None:
    """A kill in either phase, or between them, changes no byte of the model, the log or the update norms."""
    out = tmp_path / "out"
    with pytest.raises(Killed):
        train_short(out, kill_at(phase, step), **KINDS[kind])
    assert not (out / "training.json").exists()
    train_short(out, **KINDS[kind])
    assert content(out) == uninterrupted(kind)


def test_it_goes_on_from_the_last_checkpoint(train_short: TrainShort, tmp_path: Path) -> None:
    """Finished steps are not repeated: a complete phase is skipped, and the other begins at its checkpoint."""
    seen: list[tuple[str, int]] = []
    with pytest.raises(Killed):
        train_short(tmp_path / "out", kill_at("main", 4), method="swat")
    train_short(tmp_path / "out", lambda what, done, total: seen.append((what, done)), method="swat")
    assert seen == [("main", step) for step in (3, 4, 5, 6)]


def test_killed_again_and_again(uninterrupted: Callable, train_short: TrainShort, tmp_path: Path) -> None:
    """A training killed after every few steps ends like one that was left alone."""
    for phase, step in [("warmup", 2), ("warmup", 4), ("main", 2), ("main", 4), ("main", 6)]:
        with pytest.raises(Killed):
            train_short(tmp_path / "out", kill_at(phase, step), method="swat")
    train_short(tmp_path / "out", method="swat")
    assert content(tmp_path / "out") == uninterrupted("swat")


def fail(*arguments: Any, **named: Any) -> None:
    raise Killed


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (phase_trainer.PhaseTrainer, "_save_optimizer_and_scheduler"),  # within a checkpoint
        (phase_trainer, "write_json"),  # a checkpoint written, but not marked complete
        (phase_trainer, "remove_checkpoint"),  # two complete checkpoints
        (phase_run, "save_weights"),  # a phase trained, its weights not written
        (phase_run, "write_json"),  # its weights written, its result not
        (training_module, "write_tuned_model"),  # all phases complete, no model
        (training_module, "forget_phases"),  # everything complete but the cleaning up
    ],
)
def test_killed_while_writing(
    place: Any, name: str, uninterrupted: Callable, train_short: TrainShort, tmp_path: Path, monkeypatch: Any
) -> None:
    """Whatever is half-written at the kill is never taken for complete."""
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        with pytest.raises(Killed):
            train_short(tmp_path / "out", method="swat")
    train_short(tmp_path / "out", method="swat")
    assert content(tmp_path / "out") == uninterrupted("swat")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model",
        "training.json",
        "training_inputs.json",
        "training_log.jsonl",
    ]


def test_a_half_removed_checkpoint_is_not_complete(tmp_path: Path) -> None:
    """A checkpoint loses its mark before its files, so what a kill leaves of it does not look complete."""
    for step in (3, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
    (tmp_path / "checkpoint-3" / "complete.json").write_text('{"step": 3, "seconds": 1.5}')
    assert phase_trainer.complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-3", 3, 1.5)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


REAL_KILLS = [(kind, phase, seed) for kind in list(KINDS)[:2] for seed in range(4) for phase in STEPS]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("kind", "phase", "seed"),
    [pytest.param(*case, marks=[pytest.mark.long] * (case[0] != "swat" or case[2] > 0)) for case in REAL_KILLS],
)
def test_a_real_kill(
    kind: str, phase: str, seed: int, uninterrupted: Callable, train_short: TrainShort, tmp_path: Path
) -> None:
    """A process that gets SIGKILL at a random step of a phase, or between the two, leaves a training that goes on."""
    expected = uninterrupted(kind)
    moment = (phase.replace("boundary", "main"), random.Random(f"{kind} {phase} {seed}").choice(STEPS[phase]))

    def kill_myself(what: str, done: int, total: int) -> None:
        if (what, done) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            train_short(tmp_path / "out", kill_myself, **KINDS[kind])
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    train_short(tmp_path / "out", **KINDS[kind])
    assert content(tmp_path / "out") == expected


def test_a_complete_training_is_not_repeated(train_short: TrainShort, tmp_path: Path) -> None:
    """Started once more, a complete training returns its result and trains nothing."""
    first = train_short(tmp_path / "out", method="ift")
    again = train_short(tmp_path / "out", kill_at("main", 0), method="ift")
    assert again == first


def test_another_run_does_not_go_on_in_the_folder(train_short: TrainShort, tmp_path: Path) -> None:
    """A folder begun with other settings is refused, and the message names the settings that differ."""
    with pytest.raises(Killed):
        train_short(tmp_path / "out", kill_at("warmup", 2), method="swat")
    with pytest.raises(
        InputError, match=r"holds another training run \(it differs in training.method, training.seed\)"
    ):
        train_short(tmp_path / "out", method="ml-lr", seed=3)


@pytest.mark.parametrize("name", ["run.json", "training.json", "model"])
def test_a_folder_of_something_else_is_refused(name: str, train_short: TrainShort, tmp_path: Path) -> None:
    """A folder that holds a model or a run of unknown origin is not written into."""
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"holds another run \\({name}\\)"):
        train_short(tmp_path, method="ift")


def test_a_file_is_no_output_folder(train_short: TrainShort, tmp_path: Path) -> None:
    """An output that is a file is refused."""
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="the output must be a folder; got a file"):
        train_short(tmp_path / "out", method="ift")
