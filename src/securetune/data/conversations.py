"""Training data by name: a file, a data set, or the embedded one, read as conversations.

What a file may be is in `conversation_files`, which shapes a row may have in `conversation_shapes`, and how a data set
is named in `data_sets`. Several sources, with ` + ` between them, are read one after the other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from securetune.artifacts import sha256_json
from securetune.data.conversation_files import NumberedRow, read_rows
from securetune.data.conversation_shapes import Conversation, Message, conversation_from_row
from securetune.data.data_sets import names_data_set, read_data_set_rows
from securetune.errors import DataError, ProblemList

__all__ = [
    "TINY_WORLD",
    "Conversation",
    "Message",
    "ReadConversations",
    "conversations_hash",
    "read_conversations",
    "read_training_data",
    "shown_sources",
    "training_sources",
]

TINY_WORLD = "tiny-world"
"""Name of the embedded downstream data, given instead of a file."""

TINY_WORLD_HOW_TO = "tiny-world-how-to"
"""Name of embedded data whose requests have the forms of those that the model refuses."""

TINY_WORLD_ROWS = 4000
"""Rows of the embedded data, all different: nearly as many as the language has, 125 steps of 32 rows."""

_MOST_PROBLEMS_SHOWN = 20
_AND = " + "
_MOST_ROWS_NAMED = 5


class ReadConversations(NamedTuple):
    """Training data as read.

    Attributes:
        conversations: One a row.
        shapes: Shape of the rows (`messages`, `sharegpt`, `alpaca`, `prompt/completion`, …) → number of rows.
    """

    conversations: list[Conversation]
    shapes: dict[str, int]


def read_conversations(source: str | Path, count: int = TINY_WORLD_ROWS, seed: int = 0) -> list[Conversation]:
    """Read training data; `read_training_data` also tells which shapes the rows had.

    Args:
        source: A file (JSON lines, JSON, CSV, TSV or Parquet), a data set
            (`hub:owner/name[@revision][#configuration][:split]`, or `folder:path` with the same endings), or
            `tiny-world` for the embedded downstream data or `tiny-world-how-to` for embedded data that resemble what is
            refused; or several of these with ` + ` between them.
        count: Rows of the embedded data; everything else is read whole.
        seed: Seed of the embedded data. One data set for every training seed, as with a file.

    Raises:
        DataError: If the source is missing, unreadable, or empty, or with a sentence for each kind of bad row.
    """
    return read_training_data(source, count, seed).conversations


def read_training_data(source: str | Path, count: int = TINY_WORLD_ROWS, seed: int = 0) -> ReadConversations:
    """Read training data as `read_conversations` does, and count the shapes of its rows."""
    names = training_sources(str(source))
    if len(names) == 1:
        return _read_source(names[0], count, seed)
    problems = ProblemList()
    parts: list[ReadConversations] = []
    for name in names:
        with problems.collect():
            parts.append(_read_source(name, count, seed))
    problems.raise_if_any(DataError)
    shapes = sum((Counter(part.shapes) for part in parts), Counter[str]())
    return ReadConversations([row for part in parts for row in part.conversations], dict(shapes))


def training_sources(source: str) -> list[str]:
    """Take several sources apart.

    Example:
        >>> training_sources("own.jsonl + hub:owner/name:train[:1000]")
        ['own.jsonl', 'hub:owner/name:train[:1000]']
    """
    return [source] if Path(source).exists() else [part.strip() for part in source.split(_AND)]


def shown_sources(source: str) -> str:
    """Return sources as others may read them: of files and folders the last part, which tells nothing of this machine.

    Example:
        >>> shown_sources("../data/own.jsonl + hub:owner/name:train + folder:../set:test")
        'own.jsonl + hub:owner/name:train + folder:set:test'
    """
    return _AND.join(
        name if name.startswith("hub:") else ("folder:" if name.startswith("folder:") else "") + name.rpartition("/")[2]
        for name in training_sources(source)
    )


def _read_source(name: str, count: int, seed: int) -> ReadConversations:
    if name in (TINY_WORLD, TINY_WORLD_HOW_TO):
        from securetune import tiny_world

        is_how_to = name == TINY_WORLD_HOW_TO
        rows = (tiny_world.how_to_training_rows if is_how_to else tiny_world.downstream_training_rows)(count, seed)
        return ReadConversations([{"messages": row["messages"]} for row in rows], {"messages": len(rows)})
    if names_data_set(name):
        return _conversations(name, enumerate(read_data_set_rows(name), start=1))
    also = f'a data set (hub:owner/name or folder:PATH), or "{TINY_WORLD}"'
    return _conversations(name, read_rows(Path(name), also))


def _conversations(name: str, rows: Iterable[NumberedRow]) -> ReadConversations:
    conversations: list[Conversation] = []
    shapes: Counter[str] = Counter()
    problems: dict[str, list[int]] = defaultdict(list)
    for number, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            conversation, shape = conversation_from_row(row)
        except ValueError as error:
            problems[str(error)].append(number)
            continue
        conversations.append(conversation)
        shapes[shape] += 1
    if problems:
        raise DataError(_told(name, problems))
    if not conversations:
        raise DataError(f"{name}: must hold at least one conversation; got no rows")
    return ReadConversations(conversations, dict(shapes))


def conversations_hash(conversations: Sequence[Conversation]) -> str:
    """Hash the content of training data, independently of the file format it came in."""
    return sha256_json([list(conversation["messages"]) for conversation in conversations])


def _told(name: str, problems: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a line for each kind of problem: in a file of another shape all rows have the same one."""
    shown = list(problems.items())[:_MOST_PROBLEMS_SHOWN]
    hidden = sum(map(len, problems.values())) - sum(len(rows) for _, rows in shown)
    lines = [f"{name}: {_rows(rows)}: {sentence}" for sentence, rows in shown]
    return lines + [f"{name}: {hidden} more rows are unusable"] * (hidden > 0)


def _rows(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    more = len(numbers) - _MOST_ROWS_NAMED
    named = ", ".join(map(str, numbers[:_MOST_ROWS_NAMED]))
    return f"rows {named} and {more} more" if more > 0 else f"rows {named}"
