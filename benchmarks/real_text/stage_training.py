"""The training loop of all stages, which goes on after it was killed.

A plain loop and not `transformers.Trainer`: batches are drawn by weight, and a stage is a number of steps and no file
of rows.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

IGNORED_LABEL = -100


class Batch(NamedTuple):
    """Token ids and labels, both of shape (batch, sequence); labels of `IGNORED_LABEL` carry no loss."""

    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class StageSettings:
    """How one stage trains.

    Attributes:
        name: The stage's name; its state is saved under it.
        steps: Optimizer steps.
        learning_rate: Peak of the schedule (3 % linear warm-up, then cosine down to a twentieth).
        weight_decay: For matrices; norms have none.
        save_every_seconds: Time between two saves.
    """

    name: str
    steps: int
    learning_rate: float
    weight_decay: float = 0.05
    save_every_seconds: float = 120.0


@dataclass
class StageProgress:
    """What a stage has done so far."""

    step: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    loss_nats_per_token: float = math.nan


def packed_batches(
    sources: Sequence[np.ndarray], shares: Sequence[float], shape: tuple[int, int], seed: int
) -> Callable[[int], Batch]:
    """Returns a function from the step to a batch of random windows, each from a source drawn by its share."""
    rows, length = shape

    def batch_at(step: int) -> Batch:
        generator = np.random.default_rng((seed, step))
        windows = []
        for source in generator.choice(len(sources), size=rows, p=np.array(shares) / sum(shares)):
            start = generator.integers(0, len(sources[source]) - length)
            windows.append(sources[source][start : start + length].astype(np.int64))
        ids = torch.from_numpy(np.stack(windows))
        return Batch(ids, ids)

    return batch_at


def pad_rows(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    """Stacks (ids, labels) with padding on the right, where causal attention needs no mask for it."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED_LABEL)
    for index, (row_ids, row_labels) in enumerate(rows):
        ids[index, : len(row_ids)] = torch.tensor(row_ids)
        labels[index, : len(row_labels)] = torch.tensor(row_labels)
    return Batch(ids, labels)


def bucketed_batches(
    rows: Sequence[tuple[list[int], list[int]]], weights: np.ndarray | None, size: int, seed: int
) -> Callable[[int], Batch]:
    """Returns a function from the step to a batch of rows of similar length.

    Args:
        rows: Token ids and labels of each example.
        weights: Probability of each row (rows are then drawn with replacement), or None for whole epochs.
        size: Rows a batch.
        seed: Of the order.
    """
    steps_per_epoch = len(rows) // size
    order: list[np.ndarray] = []
    order_epoch = -1

    def plan(epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng((seed, epoch))
        count = steps_per_epoch * size
        drawn = (
            generator.choice(len(rows), size=count, p=weights)
            if weights is not None
            else (generator.permutation(len(rows))[:count])
        )
        chunks = [drawn[start : start + 32 * size] for start in range(0, count, 32 * size)]
        by_length = [chunk[np.argsort([len(rows[index][0]) for index in chunk], kind="stable")] for chunk in chunks]
        batches = [chunk[start : start + size] for chunk in by_length for start in range(0, len(chunk), size)]
        return [batches[index] for index in generator.permutation(len(batches))]

    def batch_at(step: int) -> Batch:
        nonlocal order, order_epoch
        epoch, position = divmod(step, steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = plan(epoch), epoch
        return pad_rows([rows[index] for index in order[position]])

    return batch_at


def _schedule(share_done: float) -> float:
    if share_done < 0.03:
        return max(0.02, share_done / 0.03)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, (share_done - 0.03) / 0.97)))


def _save(path: Path, state: dict) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def bf16_is_faster(repeats: int = 5) -> bool:
    """Returns whether this processor multiplies faster in bf16; without instructions for it, it is slow."""

    def seconds(dtype: torch.dtype) -> float:
        factor = torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(repeats):
            begun = time.process_time()
            factor @ factor
            times.append(time.process_time() - begun)
        return min(times)

    return seconds(torch.bfloat16) < seconds(torch.float32)


def train_stage(
    model: PreTrainedModel, settings: StageSettings, batch_at: Callable[[int], Batch], state_path: Path, log_path: Path
) -> StageProgress:
    """Trains the model in place for the stage's steps, from the saved state if there is one."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    progress = StageProgress()
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        progress = StageProgress(**state["progress"])
        print(f"{settings.name}: goes on from step {progress.step}", file=sys.stderr, flush=True)

    model.train()
    in_bf16 = bf16_is_faster()
    saved_at, logged_at = time.monotonic(), -math.inf
    recent: list[float] = []
    while progress.step < settings.steps:
        begun = time.process_time()
        share_done = progress.step / settings.steps
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(share_done)
        batch = batch_at(progress.step)
        # bf16 autocast: 4,100 to 4,400 tokens a second on one core with avx512_bf16, 1,750 to 2,000 in float32.
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            loss = model(input_ids=batch.input_ids, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        recent = [*recent[-49:], loss.item()]
        progress.step += 1
        progress.tokens_seen += int((batch.labels != IGNORED_LABEL).sum())
        progress.seconds += time.process_time() - begun
        progress.loss_nats_per_token = sum(recent) / len(recent)
        if time.monotonic() - logged_at > 20:
            logged_at = time.monotonic()
            record = {"stage": settings.name, **asdict(progress), "learning_rate": optimizer.param_groups[0]["lr"]}
            with log_path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            print(
                f"{settings.name}: {share_done:4.0%} step {progress.step} loss {progress.loss_nats_per_token:.3f} "
                f"{progress.tokens_seen / progress.seconds:,.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
        if time.monotonic() - saved_at > settings.save_every_seconds:
            _save(
                state_path,
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)},
            )
            saved_at = time.monotonic()
    model.eval()
    return progress


@torch.inference_mode()
def held_out_loss(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Returns the mean loss in nats per labelled token."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch.input_ids).logits[:, :-1].float()
        targets = batch.labels[:, 1:]
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        ).item()
        count += int((targets != IGNORED_LABEL).sum())
    return total / count if count else math.nan
