"""Rows of a question and an answer, such as Alpaca's, GSM8K's and Dolly's, as the prompts and completions of TRL.

TRL knows rows with `messages`, `conversations`, `prompt` and `completion`, and text; at any other it stops with a
`KeyError` for its text column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset
from trl import SFTConfig

from securetune.data.conversation_shapes import conversation_from_row, has_known_shape
from securetune.errors import DataError

_KNOWN_TO_TRL = ({"input_ids"}, {"messages"}, {"conversations"}, {"prompt", "completion"})


def rows_for_trl(rows: Any, args: SFTConfig) -> Any:
    """Return rows that TRL can train on; what it knows already, and what is no such row, is returned as it is.

    Args:
        rows: What a trainer takes as data: a data set, streamed or not, several by name, or None.
        args: For the name of the text column.

    Raises:
        DataError: If a row has no text where others have, once it is read.
    """
    if isinstance(rows, dict):
        return {name: rows_for_trl(part, args) for name, part in rows.items()}
    if not isinstance(rows, Dataset | IterableDataset):
        return rows
    first = next(iter(rows), None)
    if first is None or any(fields <= first.keys() for fields in (*_KNOWN_TO_TRL, {args.dataset_text_field})):
        return rows
    return rows.map(_turns, with_indices=True, remove_columns=list(first)) if has_known_shape(first) else rows


def _turns(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    try:
        *asked, answer = conversation_from_row(dict(row)).conversation["messages"]
    except ValueError as error:
        raise DataError(f"row {index + 1} of the data set: {error}") from None
    return {"prompt": asked, "completion": [answer]}
