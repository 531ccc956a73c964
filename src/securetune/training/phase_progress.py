"""What is written down, saved and shown while a phase trains."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from securetune.artifacts import append_json_line, read_json_lines, write_text
from securetune.errors import RunError
from securetune.progress import ProgressCallback

if TYPE_CHECKING:
    from securetune.training.phase_trainer import PhaseTrainer

_LOG_ROWS_PER_PHASE = 50
_CHECKPOINTS_PER_PHASE = 10


class PhaseProgress(TrainerCallback):
    """Logs every fiftieth of a phase, saves every tenth, and tells how far it is at every step.

    A checkpoint always begins a new window of logged means, so that a training that goes on from it logs the same
    numbers as one that was never stopped.

    Args:
        phase_name: For the log.
        log_path: JSON-lines file to append to.
        save_steps: Steps between checkpoints, or None for one a tenth of the phase.
        progress: Called after each step.
    """

    def __init__(self, phase_name: str, log_path: Path, save_steps: int | None, progress: ProgressCallback) -> None:
        self._phase_name = phase_name
        self._log_path = log_path
        self._save_steps = save_steps
        self._progress = progress
        self._rates: dict[str, float] = {}
        self._started = time.perf_counter()
        self.trainer: PhaseTrainer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started = time.perf_counter()
        self._progress(self._phase_name, state.global_step, state.max_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the rates of this step; after it the schedule has moved on."""
        assert self.trainer is not None
        self._rates = self.trainer.current_rates()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide whether to log and to save. The end of a phase needs no checkpoint: its weights are written then."""
        assert self.trainer is not None
        step, last = state.global_step, state.max_steps
        self.trainer.seconds = time.perf_counter() - self._started
        control.should_save = step < last and step % (self._save_steps or math.ceil(last / _CHECKPOINTS_PER_PHASE)) == 0
        log_every = math.ceil(last / _LOG_ROWS_PER_PHASE)
        control.should_log = control.should_save or step % log_every == 0 or step == last
        self._progress(self._phase_name, step, last)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append a row.

        Raises:
            RunError: If the loss is not a finite number.
        """
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise RunError(
                f"{self._phase_name} phase: the loss is {logs['loss']} at step {state.global_step}; "
                "a lower learning_rate may help"
            )
        row = {
            "phase": self._phase_name,
            "step": state.global_step,
            "epoch": state.epoch,
            "loss_nats_per_token": logs["loss"],
            "token_accuracy": logs.get("mean_token_accuracy"),
            "grad_norm": logs.get("grad_norm"),
            "learning_rate": self._rates,
            **self._of_the_method(logs),
        }
        append_json_line(self._log_path, row)

    def _of_the_method(self, logs: dict[str, Any]) -> dict[str, dict[str, float]]:
        """Return what the method has logged, if it has."""
        assert self.trainer is not None
        found = {name: logs[name] for name in sorted(self.trainer.step_metrics) if name in logs}
        return {"method": found} if found else {}


def rewind_log(path: Path, phase_name: str, step: int) -> None:
    """Drop the rows that a killed training wrote after its last checkpoint; they will be written again."""
    if not path.exists():
        return
    rows = list(read_json_lines(path))
    kept = [row for row in rows if row["phase"] != phase_name or (row["step"] <= step and "update" not in row)]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
