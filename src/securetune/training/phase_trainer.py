"""TRL's `SFTTrainer` for one phase: parameter groups, freezing, and checkpoints that are complete or absent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn
from trl import SFTTrainer

from securetune.artifacts import read_json, write_json
from securetune.defenses import Defense, Phase
from securetune.training.alignment_batches import AlignmentBatches
from securetune.training.phase_groups import PhaseOfMethod, freeze_all_but, trained_names
from securetune.training.weights import load_weights, save_weights

_COMPLETE = "complete.json"
_WEIGHTS = "weights.safetensors"


class PhaseTrainer(PhaseOfMethod, SFTTrainer):
    """Trains one phase and nothing else: a second phase is a second trainer, with an optimizer and schedule of its own.

    Changing what may train during a run fails in silence (the optimizer never hears of it), breaks distributed wrappers
    and carries Adam's state over; two complete runs do not.

    Args:
        phase: What trains, at which rates; every other parameter is frozen, before the optimizer is made.
        defense: For its part in each step.
        alignment_batches: The method's own rows, if it has any.
        **arguments: Those of `SFTTrainer`.
    """

    def __init__(
        self, *, phase: Phase, defense: Defense, alignment_batches: AlignmentBatches | None = None, **arguments: Any
    ) -> None:
        self.phase = phase
        self.defense = defense
        self.alignment_batches = alignment_batches
        self._trained_names = trained_names(phase)
        freeze_all_but(arguments["model"], self._trained_names)
        self.seconds_before = 0.0
        self.seconds = 0.0
        super().__init__(**arguments)

    @property
    def folder(self) -> Path:
        """Where the checkpoints lie."""
        return Path(str(self.args.output_dir))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_weights(self.network, self._trained_names, Path(output_dir or self.folder) / _WEIGHTS)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, mark it complete, and only then remove the one before."""
        super()._save_checkpoint(model, trial)
        newest = self.folder / f"checkpoint-{self.state.global_step}"
        write_json(newest / _COMPLETE, {"step": self.state.global_step, "seconds": self.seconds_before + self.seconds})
        for other in self.folder.glob("checkpoint-*"):
            if other != newest:
                remove_checkpoint(other)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # PEFT's own loading would unfreeze every adapter, also those that this phase freezes.
        load_weights(self.network, Path(resume_from_checkpoint) / _WEIGHTS)

    def create_model_card(self, *arguments: Any, **named: Any) -> None:
        """Write none: TRL would write one beside each checkpoint."""


def complete_checkpoint(folder: Path) -> tuple[Path, int, float] | None:
    """Return the last complete checkpoint with its step and the seconds spent so far; remove half-written ones."""
    found = None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        if (path / _COMPLETE).exists():
            content = read_json(path / _COMPLETE)
            found = (path, int(content["step"]), float(content["seconds"]))
        else:
            shutil.rmtree(path)
    return found


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, its mark first: what is left of it after a kill must not look complete."""
    (folder / _COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder)
