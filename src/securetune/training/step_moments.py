"""The moments of a method around each optimizer step, and what it may ask of the trainer then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from trl import SFTTrainer

from securetune.defenses import Defense, Phase
from securetune.defenses.optimizer_step import Batch, OptimizerStep, UserLoss
from securetune.training.alignment_batches import AlignmentBatches

if TYPE_CHECKING:
    _Base = SFTTrainer
else:
    _Base = object  # mixed into a trainer; it must come before it

METHOD_STATE = "method_state.safetensors"


def acts(defense: Defense, moment: str) -> bool:
    """Tell whether a method overrides a moment; one that does not is never called there."""
    return getattr(type(defense), moment) is not getattr(Defense, moment)


class StepMoments(_Base):
    """A trainer that lets a method act before an optimizer step and on its gradients, and saves what it remembers.

    Attributes:
        phase: What trains. Set before the optimizer is made.
        defense: The method.
        alignment_batches: The method's own rows, or None if it has none.
        step_metrics: Names that the method has logged.
    """

    phase: Phase
    defense: Defense
    alignment_batches: AlignmentBatches | None = None
    network: Any
    step_metrics: frozenset[str] = frozenset()
    _begun = -1
    _user_batches: tuple[list[Any], Any] = ([], None)

    def get_batch_samples(self, *arguments: Any, **named: Any) -> tuple[list[Any], Any]:
        """Return the next optimizer step's batches, and keep hold of them for a method that acts before it."""
        found: tuple[list[Any], Any] = super().get_batch_samples(*arguments, **named)
        if acts(self.defense, "before_step"):
            self._user_batches = found
        return found

    def training_step(self, model: nn.Module, *arguments: Any, **named: Any) -> Tensor:
        """Run a batch forward and backward; before the first of an optimizer step, and after its last, the method."""
        if acts(self.defense, "before_step") and self._begun != self.state.global_step:
            self._begun = self.state.global_step
            model.train()
            self.defense.before_step(_Step(self, model))
        loss: Tensor = super().training_step(model, *arguments, **named)
        if acts(self.defense, "adjust_gradients") and self.accelerator.sync_gradients:
            self.defense.adjust_gradients(_Step(self, model))
        return loss

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the schedule, over the user's steps and the method's own."""
        self._begun = -1
        phase: Phase | None = getattr(self, "phase", None)
        own = phase.alignment_steps if phase else 0
        made: torch.optim.lr_scheduler.LRScheduler = super().create_scheduler(num_training_steps + own, optimizer)
        return made

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the method's state too, before what marks a checkpoint as complete."""
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            save_method_state(self.defense, Path(output_dir) / METHOD_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_method_state(self.defense, Path(checkpoint) / METHOD_STATE)


def save_method_state(defense: Defense, path: Path) -> None:
    """Write what a method remembers; nothing if it remembers nothing."""
    if state := defense.state_dict():
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, path)


def load_method_state(defense: Defense, path: Path) -> None:
    """Give a method back what it remembered, if it remembered anything."""
    if path.exists():
        defense.load_state_dict(load_file(path))


class _Step(OptimizerStep):
    """An optimizer step of a trainer.

    Args:
        trainer: Whose step it is.
        wrapped: The model as the trainer runs it, with the wrapper of a distributed engine.
    """

    def __init__(self, trainer: StepMoments, wrapped: nn.Module) -> None:
        self._trainer, self._wrapped = trainer, wrapped
        self.number = trainer.state.global_step
        self.model = trainer.network
        assert trainer.optimizer is not None  # it is made before the first step
        self.optimizer = trainer.optimizer
        self.batches_per_step = trainer.args.gradient_accumulation_steps

    def user_losses(self) -> Sequence[UserLoss]:
        """Return what computes each batch's part of the loss, without a trace in the log."""
        batches, items = self._trainer._user_batches
        return [partial(self._user_loss, batch, items, len(batches)) for batch in batches]

    def _user_loss(self, batch: dict[str, Any], items: Any, batches: int) -> Tensor:
        trainer = self._trainer
        inputs = trainer._prepare_inputs(dict(batch))
        with trainer.compute_loss_context_manager(), _unlogged(trainer):
            loss: Tensor = trainer.compute_loss(self.model, inputs, num_items_in_batch=items)
        return loss if items is not None else loss / batches

    def alignment_batch(self, name: str, index: int) -> Batch:
        """Return a batch on the model's device."""
        assert self._trainer.alignment_batches is not None  # the method gave the rows
        found: Batch = self._trainer._prepare_inputs(self._trainer.alignment_batches.batch(name, index))
        return found

    def take_alignment_step(self, name: str, index: int) -> float:
        """Take a step of the trainer's own: backward, the method's change of the gradients, clipping, optimizer."""
        trainer, first = self._trainer, index * self.batches_per_step
        batches = [self.alignment_batch(name, first + number) for number in range(self.batches_per_step)]
        tokens = [(batch["labels"][:, 1:] != -100).sum() for batch in batches]
        total = trainer.accelerator.reduce(sum(tokens), "sum")
        processes = trainer.accelerator.num_processes
        losses = []
        with _with_synced_gradients(trainer):
            for number, (batch, count) in enumerate(zip(batches, tokens, strict=True)):
                with self._reduced(last=number == len(batches) - 1):
                    with trainer.compute_loss_context_manager():
                        loss = self._wrapped(**batch, use_cache=False).loss * count / total * processes
                    trainer.accelerator.backward(loss)
                losses.append(loss.detach())
            if acts(trainer.defense, "adjust_gradients"):
                trainer.defense.adjust_gradients(self)
            if trainer.args.max_grad_norm > 0:
                trainer._clip_grad_norm(self._wrapped)
            self.optimizer.step()
        assert trainer.lr_scheduler is not None
        trainer.lr_scheduler.step()
        self._wrapped.zero_grad()
        return float(trainer.accelerator.reduce(torch.stack(losses).sum(), "mean"))

    @contextmanager
    def _reduced(self, last: bool) -> Iterator[None]:
        """Have DDP add up the gradients of all processes in the last backward pass, also within a `no_sync`."""
        if not isinstance(self._wrapped, DistributedDataParallel):
            yield
            return
        before = self._wrapped.require_backward_grad_sync
        self._wrapped.require_backward_grad_sync = last
        try:
            yield
        finally:
            self._wrapped.require_backward_grad_sync = before

    def gradients(self, loss: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients, averaged over processes."""
        found = torch.autograd.grad(loss, list(of), allow_unused=True)
        return self.averaged(
            [torch.zeros_like(x) if value is None else value for x, value in zip(of, found, strict=True)]
        )

    def averaged(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return the values averaged over processes; of one, they are the same objects."""
        accelerator = self._trainer.accelerator
        return list(values) if accelerator.num_processes == 1 else [accelerator.reduce(x, "mean") for x in values]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return accelerate's context, which does nothing without mixed precision."""
        context: AbstractContextManager[Any] = self._trainer.accelerator.autocast()
        return context

    def log(self, name: str, value: float) -> None:
        """Add to what TRL averages and logs."""
        self._trainer.step_metrics |= {name}
        self._trainer._metrics["train"][name].append(value)


@contextmanager
def _unlogged(trainer: Any) -> Iterator[None]:
    """Undo what TRL notes of a loss for its log: this one is computed once more than it is trained on."""
    metrics = {name: list(values) for name, values in trainer._metrics["train"].items()}
    tokens = trainer._total_train_tokens
    try:
        yield
    finally:
        trainer._metrics["train"].clear()
        trainer._metrics["train"].update(metrics)
        trainer._total_train_tokens = tokens


@contextmanager
def _with_synced_gradients(trainer: Any) -> Iterator[None]:
    """Let the optimizer step: accelerate's does nothing while gradients are being added up."""
    state = trainer.accelerator.gradient_state
    before = state.sync_gradients
    state._set_sync_gradients(True)
    try:
        yield
    finally:
        state._set_sync_gradients(before)


def step_problems(trainer: Any) -> list[str]:
    """Return why a method that acts around steps cannot do so in a trainer, one sentence each.

    Args:
        trainer: Before it trains.
    """
    defense: Defense = trainer.defense
    if not any(acts(defense, moment) for moment in ("before_step", "adjust_gradients")):
        return []
    found = []
    engine = trainer.accelerator.distributed_type
    if engine not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        found.append(
            f'method "{defense.name}" needs whole weights and gradients in each process, which {engine.value} divides. '
            "Use one process, or DDP."
        )
    if trainer.args.fp16:
        found.append(f'fp16 scales the gradients, which method "{defense.name}" changes. Use bf16.')
    if (trainer.args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        found.append(f'method "{defense.name}" needs gradient_checkpointing_kwargs use_reentrant: False; got True')
    if getattr(trainer.args, "n_gpu", 1) > 1:
        found.append(f'method "{defense.name}" cannot train with torch.nn.DataParallel. Use one GPU, or DDP.')
    return found
