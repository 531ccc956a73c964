"""Batches of a method's own rows: encoded as the training data is, in an order that any process can compute again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from securetune.artifacts import TrainingData
from securetune.defenses import Defense
from securetune.errors import ConfigError
from securetune.training.encoding import encode_conversations
from securetune.training.packing import collator

_SEED_OFFSET = 3_000_017
"""Far from the seeds 0, 1, 2, … that people use, so that the rows have no order of the user's data."""


class EncodedAlignmentRows(NamedTuple):
    """A method's own rows.

    Attributes:
        rows: By the method's name for them: columns `input_ids` and `labels`.
        counts: What was made of the conversations, by the same names.
    """

    rows: dict[str, Dataset]
    counts: dict[str, TrainingData]


def encode_alignment_rows(
    defense: Defense, model_name: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedAlignmentRows:
    """Encode the conversations that a method has of its own; loss is on the answers.

    Args:
        defense: The method.
        model_name: The start model's name as the user gave it.
        tokenizer: The model's.
        max_length: Longest row in tokens.

    Raises:
        DataError: If they cannot be read or rendered.
        ConfigError: If a row is so long that nothing of its answer is left.
    """
    rows, counts = {}, {}
    for name, conversations in defense.alignment_rows(model_name).items():
        encoded = encode_conversations(tokenizer, conversations, max_length)
        if encoded.counts.dropped_rows:
            raise ConfigError(
                f"max_length must leave a part of the answer in each of {defense.name}'s own rows; got {max_length}, "
                f"which leaves none in {encoded.counts.dropped_rows} of {encoded.counts.rows}"
            )
        rows[name], counts[name] = encoded.dataset, encoded.counts
    return EncodedAlignmentRows(rows, counts)


@dataclass(frozen=True)
class AlignmentBatches:
    """Batches by number, without any state: a training that goes on takes up the order where it was.

    Attributes:
        rows: By the method's name for them.
        tokenizer: For the padding.
        seed: The training's.
        size: Rows a batch and process.
        processes: How many share a batch.
        rank: Which of them this is.
    """

    rows: Mapping[str, Dataset]
    tokenizer: PreTrainedTokenizerBase
    seed: int
    size: int
    processes: int = 1
    rank: int = 0

    def batch(self, name: str, index: int) -> dict[str, Any]:
        """Return this process's part of a batch, padded, on the CPU."""
        first = (index * self.processes + self.rank) * self.size
        places = [self._place(len(self.rows[name]), first + offset) for offset in range(self.size)]
        taken = self.rows[name].select(places)
        found: dict[str, Any] = collator(self.tokenizer, packing=False)(
            [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in taken]
        )
        return found

    def _place(self, count: int, number: int) -> int:
        """Return the row that comes at a number of an endless series of passes, each in an order of its own."""
        turn, within = divmod(number, count)
        generator = torch.Generator().manual_seed(self.seed + _SEED_OFFSET + turn)
        return int(torch.randperm(count, generator=generator)[within])
