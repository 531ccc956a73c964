"""One training row as the model will see it, cut where the loss begins and ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from securetune.pipeline.planning.planned import ExampleSegment
from securetune.training.encoding import IGNORED_LABEL


def segments(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> list[ExampleSegment]:
    """Cut a row into runs of tokens that carry loss and runs that do not.

    Args:
        tokenizer: The model's.
        row: `input_ids` and `labels`.
    """
    ids: Sequence[int] = row["input_ids"]
    found, start = [], 0
    for is_trained, run in groupby(label != IGNORED_LABEL for label in row["labels"]):
        end = start + len(list(run))
        found.append(ExampleSegment(text=_text(tokenizer, ids, start, end), tokens=end - start, trained=is_trained))
        start = end
    return found


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], start: int, end: int) -> str:
    """Decode a part in its place: by itself, many a tokenizer drops the space before its first word."""
    before, through = (str(tokenizer.decode(list(ids[:stop]))) for stop in (start, end))
    return through[len(before) :] if through.startswith(before) else str(tokenizer.decode(list(ids[start:end])))
