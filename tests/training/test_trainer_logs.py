"""What `SecureSFTTrainer` logs and evaluates while it trains, in both phases, for whatever `report_to` names."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from secure_script import LORA, UPPER, differing, secure, start, weights
from short_training import make_rows
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTTrainer

from securetune import SecureSFTTrainer

EVALUATED: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2.0}
ROWS = Dataset.from_list(make_rows()[:8])


class Reporter(TrainerCallback):
    """Takes what an integration such as TensorBoard takes, and the weights that the main phase begins with."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []
        self.start: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.start = {name: value.detach().clone() for name, value in model.named_parameters()}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append({**logs, "step": state.global_step})


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_both_phases_are_evaluated(adapter: dict | None, tiny_model_dir: Path, tmp_path: Path):
    """Every second step, with the phase in each log, and with the loss of the weights as they are then."""
    reporter = Reporter()
    trainer = start(
        SecureSFTTrainer, secure(tmp_path, **EVALUATED), tiny_model_dir, adapter, eval_dataset=ROWS,
        callbacks=[reporter],
    )  # fmt: skip
    trainer.train()
    evaluated = [(row["phase"], row["step"]) for row in reporter.logs if "eval_loss" in row]
    assert evaluated == [("warmup", 2), ("warmup", 4), ("main", 2), ("main", 4), ("main", 6)]
    last = [row["eval_loss"] for row in reporter.logs if "eval_loss" in row][-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(last, rel=1e-6)
    assert all(row["phase"] in ("warmup", "main") for row in reporter.logs)


def test_evaluation_returns_what_trls_does(tiny_model_dir: Path, tmp_path: Path):
    """The same names, TRL's accuracy among them, and numbers only."""
    names = []
    for kind in (SFTTrainer, SecureSFTTrainer):
        trainer = start(kind, secure(tmp_path / kind.__name__, **EVALUATED), tiny_model_dir, eval_dataset=ROWS)
        trainer.train()
        found = trainer.evaluate()
        assert all(isinstance(value, int | float) for value in found.values())
        names.append(set(found))
    assert "eval_mean_token_accuracy" in names[0]
    assert names[0] == names[1]


@pytest.mark.parametrize("metric", ["eval_loss", "eval_mean_token_accuracy"])
@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_the_best_model_is_that_of_the_main_phase(
    metric: str, adapter: dict | None, tiny_model_dir: Path, tmp_path: Path
):
    """`load_best_model_at_end` takes the main phase's best, and the warm-up hands on its last weights, not its best."""
    kept: dict[tuple[str, int], dict[str, torch.Tensor]] = {}

    class Watch(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            phase = "warmup" if args.output_dir.endswith("_warmup") else "main"
            kept[phase, state.global_step] = copy.deepcopy(dict(model.named_parameters()))

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            kept[args.output_dir[-7:], 0] = copy.deepcopy(dict(model.named_parameters()))

    config = secure(
        tmp_path / "out-put", load_best_model_at_end=True, metric_for_best_model=metric, learning_rate=0.3, **EVALUATED,
    )  # fmt: skip
    trainer = start(SecureSFTTrainer, config, tiny_model_dir, adapter, eval_dataset=ROWS, callbacks=[Watch()])
    trainer.train()
    assert differing(kept["out-put", 0], kept["warmup", 4]) == []
    rows = {row["step"]: row[metric] for row in trainer.state.log_history if metric in row}
    best = (min if metric == "eval_loss" else max)(rows, key=lambda step: rows[step])
    assert trainer.state.best_global_step == best
    assert differing(weights(trainer), kept["main", best]) == []
    trainable = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trainable == {name for name in weights(trainer) if adapter is None or ".lora_" in name}


def test_early_stopping_stops_a_phase(tiny_model_dir: Path, tmp_path: Path):
    """Transformers' own callback works: with a rate that ruins the model, the main phase ends before its last step."""
    config = secure(
        tmp_path, load_best_model_at_end=True, learning_rate=1.0, warmup_phase_steps=2, max_steps=20,
        metric_for_best_model="eval_loss", **EVALUATED,
    )  # fmt: skip
    stopper = EarlyStoppingCallback(early_stopping_patience=1)
    trainer = start(SecureSFTTrainer, config, tiny_model_dir, eval_dataset=ROWS, callbacks=[stopper])
    trainer.train()
    assert trainer.state.global_step < 20


def norm(values: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in values))


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}],
    ids=["plain", "accumulation", "mixed precision"],
)
def test_integrations_get_rates_and_norms_of_each_group(settings: dict, tiny_model_dir: Path, tmp_path: Path):
    """Per group, with every loss of both phases; the norms are those of the weights' change within the phase."""
    reporter = Reporter()
    config = secure(tmp_path, log_update_norms=True, warmup_steps=0.0, **settings)
    trainer = start(SecureSFTTrainer, config, tiny_model_dir, callbacks=[reporter])
    trainer.train()
    warmup, main = ([row for row in reporter.logs if "loss" in row and row["phase"] == p] for p in ("warmup", "main"))
    assert (len(warmup), len(main)) == (4, 6)
    assert {name for name in warmup[0] if "/" in name} == {
        "learning_rate/robust", *(f"update_norm/{group}" for group in ("robust", "rest", "other")),
    }  # fmt: skip
    assert all(row["update_norm/rest"] == row["update_norm/other"] == 0 < row["update_norm/robust"] for row in warmup)
    end = weights(trainer)
    for group in ("robust", "rest", "other"):
        names = [name for name in end if ("_proj" in name) == (group != "other")]
        if group != "other":
            names = [name for name in names if (name.removesuffix(".weight") in UPPER) == (group == "robust")]
        change = norm([end[name].double() - reporter.start[name].double() for name in names])
        expected = change / norm([reporter.start[name] for name in names])
        assert main[-1][f"update_norm/{group}"] == pytest.approx(expected, rel=1e-6)


def test_every_groups_rate_is_its_own(tiny_model_dir: Path, tmp_path: Path):
    """The Trainer's own `learning_rate` is that of the first group, which says nothing of the others' at that step."""
    reporter = Reporter()
    config = secure(tmp_path, method="ml-lr", learning_rate_ratio=0.25, warmup_steps=0.0)
    start(SecureSFTTrainer, config, tiny_model_dir, LORA, callbacks=[reporter]).train()
    rows = [row for row in reporter.logs if "loss" in row]
    assert len(rows) == 6
    for row in rows:
        assert row["learning_rate/robust"] == row["learning_rate"]
        assert row["learning_rate/rest"] == pytest.approx(0.25 * row["learning_rate"])
    assert all(row["learning_rate/rest"] > 0 for row in rows)
