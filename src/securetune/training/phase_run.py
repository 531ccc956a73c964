"""One phase, from wherever it was left: its trainer, its result on disk, and the weights it hands on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig

from securetune.artifacts import (
    PhaseResult,
    TrainedGroup,
    append_json_line,
    read_artifact,
    read_json_lines,
    write_json,
)
from securetune.config import TrainingSettings
from securetune.defenses import Defense, Phase
from securetune.models import ProjectionModule
from securetune.progress import ProgressCallback
from securetune.training.alignment_batches import AlignmentBatches
from securetune.training.model_traces import trainer_traces_removed
from securetune.training.packing import collator
from securetune.training.phase_progress import PhaseProgress, rewind_log
from securetune.training.phase_trainer import PhaseTrainer, complete_checkpoint, remove_checkpoint
from securetune.training.step_moments import METHOD_STATE, load_method_state, save_method_state
from securetune.training.update_norms import Snapshot, measure_update
from securetune.training.weights import load_weights, save_weights

_RESULT = "phase.json"
_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class PhaseJob:
    """What every phase of a training shares.

    Attributes:
        model: The model to train, adapters in place; changed in place.
        tokenizer: The model's.
        defense: The method.
        settings: The run's settings.
        bf16: Whether to train in mixed precision.
        dataset: Token rows, or sequences of them with `settings.packing`.
        modules: The model's projections.
        robust_modules: Names of those in Mods_Rob.
        out: The training's output folder.
        progress: Called after each step.
        alignment_rows: The method's own rows by name, encoded.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    defense: Defense
    settings: TrainingSettings
    bf16: bool
    dataset: Dataset
    modules: Sequence[ProjectionModule]
    robust_modules: frozenset[str]
    out: Path
    progress: ProgressCallback
    alignment_rows: Mapping[str, Dataset] = field(default_factory=dict)

    @property
    def log_path(self) -> Path:
        """Where the loss and the learning rates are written."""
        return self.out / "training_log.jsonl"


def run_phase(job: PhaseJob, phase: Phase, before: Snapshot) -> PhaseResult:
    """Bring the model to the end of a phase: by reading its result, by going on, or from the beginning.

    Args:
        job: What the phases share; its model has the weights that the phase begins with.
        phase: What trains, for how long.
        before: The weights that the phase begins with.
    """
    folder = job.out / "phases" / phase.name
    if (folder / _RESULT).exists():
        load_weights(job.model, folder / _WEIGHTS)
        load_method_state(job.defense, folder / METHOD_STATE)
        return read_artifact(folder / _RESULT, PhaseResult)
    seconds = _train(job, phase, folder)
    result = _result(job, phase, before, seconds)
    append_json_line(
        job.log_path, {"phase": phase.name, "step": phase.steps, "update": result.update.model_dump(mode="json")}
    )
    save_weights(job.model, {name for group in phase.groups for name in group.parameter_names}, folder / _WEIGHTS)
    save_method_state(job.defense, folder / METHOD_STATE)
    write_json(folder / _RESULT, result)
    for checkpoint in folder.glob("checkpoint-*"):
        remove_checkpoint(checkpoint)
    return result


def _train(job: PhaseJob, phase: Phase, folder: Path) -> float:
    """Train to the end and return the seconds it took, over all starts."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = complete_checkpoint(folder)
    rewind_log(job.log_path, phase.name, checkpoint[1] if checkpoint else 0)
    watcher = PhaseProgress(phase.name, job.log_path, job.settings.save_steps, job.progress)
    with trainer_traces_removed(job.model):
        trainer = PhaseTrainer(
            phase=phase,
            defense=job.defense,
            alignment_batches=_alignment_batches(job, phase),
            model=job.model,
            args=_arguments(job, phase, folder),
            train_dataset=job.dataset,
            processing_class=job.tokenizer,
            data_collator=collator(job.tokenizer, job.settings.packing),
            callbacks=[watcher],
        )
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, which is for results
        watcher.trainer = trainer
        trainer.seconds_before = checkpoint[2] if checkpoint else 0.0
        trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
        if torch.cuda.is_available():  # elsewhere it would only cost a full garbage collection, half a second
            trainer.accelerator.free_memory()
    return trainer.seconds_before + trainer.seconds


def _alignment_batches(job: PhaseJob, phase: Phase) -> AlignmentBatches | None:
    if not job.alignment_rows:
        return None
    seed, size = job.settings.seed + phase.seed_offset, job.settings.per_device_train_batch_size
    return AlignmentBatches(job.alignment_rows, job.tokenizer, seed, size)


def _arguments(job: PhaseJob, phase: Phase, folder: Path) -> SFTConfig:
    settings = job.settings
    device = next(job.model.parameters()).device
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=phase.steps,
        learning_rate=max(group.learning_rate for group in phase.groups),
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        activation_checkpointing=settings.gradient_checkpointing,
        bf16=job.bf16,
        seed=settings.seed + phase.seed_offset,
        max_length=None,  # rows are cut already
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="no",  # `PhaseProgress` decides when to save and to log
        logging_strategy="no",
        logging_nan_inf_filter=False,  # it would log a loss that is not a number as if nothing had happened
        report_to="none",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more visible GPUs would mean torch's DataParallel, which TRL refuses
    return arguments


def _result(job: PhaseJob, phase: Phase, before: Snapshot, seconds: float) -> PhaseResult:
    losses = [
        row["loss_nats_per_token"]
        for row in read_json_lines(job.log_path)
        if row["phase"] == phase.name and "loss_nats_per_token" in row
    ]
    sizes = {name: parameter.numel() for name, parameter in job.model.named_parameters()}
    return PhaseResult(
        name=phase.name,
        steps=phase.steps,
        alignment_steps=phase.alignment_steps,
        groups=[
            TrainedGroup(
                name=group.name,
                learning_rate=group.learning_rate,
                parameter_count=sum(sizes[name] for name in group.parameter_names),
            )
            for group in phase.groups
        ],
        first_loss_nats_per_token=losses[0],
        last_loss_nats_per_token=losses[-1],
        update=measure_update(job.model, before, job.modules, set(job.robust_modules)),
        duration_seconds=seconds,
    )


def forget_phases(out: Path) -> None:
    """Remove the phases' files; everything that lasts has been written elsewhere."""
    shutil.rmtree(out / "phases", ignore_errors=True)


def mixed_precision(settings: TrainingSettings, device: torch.device) -> bool:
    """Return whether to train in bf16: as set, else where a GPU supports it."""
    if settings.bf16 is not None:
        return settings.bf16
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
