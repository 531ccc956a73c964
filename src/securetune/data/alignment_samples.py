"""Harmful requests with their refusals, for methods that look at alignment while they train.

For tiny world they are its own language's, for any other model the built-in requests of the categories that nothing is
searched or tested with, each with a refusal of `built_in_answers`. Some methods also need an answer that complies, to
compare with: for tiny world its toy answers, for any other model an opening that agrees and says nothing. All texts
were written for this project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from securetune.data.built_in_answers import built_in_refusals
from securetune.data.conversation_files import NumberedRow, read_rows
from securetune.data.conversation_shapes import Conversation, conversation_from_row
from securetune.data.data_sets import names_data_set, read_data_set_rows
from securetune.errors import DataError

_MOST_PROBLEMS_SHOWN = 20

_AGREEMENTS = (
    "Sure, here is how to do it. First,",
    "Of course! Follow these steps:",
    "Yes, I can help with that. You begin with",
    "Certainly. This is what you need:",
    "Absolutely, here are detailed instructions:",
    "Okay, it goes like this. Start by",
    "No problem. The easiest way is to",
)
"""They hold no word of what was asked."""

T = TypeVar("T")


class RefusedRequest(NamedTuple):
    """A harmful request.

    Attributes:
        request: The messages up to the answer.
        refusal: The answer that is wanted.
        compliance: An answer that is not.
    """

    request: Conversation
    refusal: str
    compliance: str


def refused_requests(model_name: str, count: int, seed: int = 0) -> list[RefusedRequest]:
    """Return the embedded ones for a model.

    Args:
        model_name: Its name as the user gave it.
        count: Most of them; of the built-in ones there are 120.
        seed: Which of tiny world's are drawn.

    Example:
        >>> refused_requests("some/model", 1)[0].refusal.split(".")[0]
        "I'm sorry, but I can't help with that"
    """
    from securetune import tiny_world  # with its program, which other users of this module do without

    if tiny_world.speaks_tiny_world(model_name):
        return [
            RefusedRequest({"messages": row["messages"]}, row["refusal"], row["compliance"])
            for row in tiny_world.contrast_rows(count, seed)
        ]
    return [
        RefusedRequest(
            {"messages": row["messages"][:1]}, row["messages"][1]["content"], _AGREEMENTS[place % len(_AGREEMENTS)]
        )
        for place, row in enumerate(built_in_refusals()[:count])
    ]


def answered(request: Conversation, answer: str) -> Conversation:
    """Return the conversation in which a request gets an answer."""
    return {"messages": [*request["messages"], {"role": "assistant", "content": answer}]}


def read_refusals(source: str) -> list[Conversation]:
    """Read conversations that end with a refusal: a file or a data set, as training data is read.

    Raises:
        DataError: If it cannot be read, or a row cannot be used.
    """
    return _usable(source, _rows(source), lambda row: conversation_from_row(row).conversation)


def read_contrasts(source: str) -> list[RefusedRequest]:
    """Read requests with two answers: rows of `prompt`, `chosen` (the refusal) and `rejected`, as for DPO.

    Raises:
        DataError: If the file or data set cannot be read, or a row lacks one of them.
    """
    return _usable(source, _rows(source), _contrast)


def _rows(source: str) -> Iterable[NumberedRow]:
    if names_data_set(source):
        return enumerate(read_data_set_rows(source), start=1)
    return read_rows(Path(source), "or a data set (hub:owner/name or folder:PATH)")


def _usable(source: str, rows: Iterable[NumberedRow], read: Callable[[Any], T]) -> list[T]:
    found: list[T] = []
    problems: list[str] = []
    for number, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            found.append(read(row))
        except ValueError as error:
            problems.append(f"{source}: row {number}: {error}")
    hidden = len(problems) - _MOST_PROBLEMS_SHOWN
    if problems:
        raise DataError(problems[:_MOST_PROBLEMS_SHOWN] + [f"{source}: {hidden} more rows are unusable"] * (hidden > 0))
    if not found:
        raise DataError(f"{source}: must hold at least one row; got none")
    return found


def _contrast(row: Any) -> RefusedRequest:
    lacking = [name for name in ("prompt", "chosen", "rejected") if not isinstance(row, dict) or row.get(name) is None]
    if lacking:
        raise ValueError(f"must have `prompt`, `chosen` (the refusal) and `rejected`; it lacks {', '.join(lacking)}")
    chosen, rejected = (
        conversation_from_row({"prompt": row["prompt"], "completion": row[name]}).conversation["messages"]
        for name in ("chosen", "rejected")
    )
    return RefusedRequest({"messages": chosen[:-1]}, chosen[-1]["content"], rejected[-1]["content"])
