"""Training data: files of conversations in the usual shapes, turned into chat messages.

A row is one of

- `{"messages": [{"role", "content"}, …]}`, ending with the assistant;
- a question (`prompt`, `question` or `instruction`; with an optional `input` or `context`) and an answer (`completion`,
  `response`, `answer` or `output`): the shapes of TRL, Alpaca, Dolly and GSM8K.

Text is taken as it stands: no wrapper of a data set is added, because the model's own chat template is the wrapper.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from securetune.errors import DataError

TINY_WORLD = "tiny-world"
"""Name of the embedded downstream data, given instead of a file."""

TINY_WORLD_ROWS = 4000
"""Rows of the embedded data, all different: nearly as many as the language has, 125 steps of 32 rows."""

_QUESTION_FIELDS = ("prompt", "question", "instruction")
_CONTEXT_FIELDS = ("input", "context")
_ANSWER_FIELDS = ("completion", "response", "answer", "output")
_ROLES = ("system", "user", "assistant")
_MOST_PROBLEMS_SHOWN = 20


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class Conversation(TypedDict):
    """One training row; its last message is the assistant's."""

    messages: list[Message]


def read_conversations(source: str | Path, count: int = TINY_WORLD_ROWS, seed: int = 0) -> list[Conversation]:
    """Read training data.

    Args:
        source: A JSON-lines file, a JSON file with one list, or `tiny-world` for the embedded downstream data.
        count: Rows of the embedded data; a file is read whole.
        seed: Seed of the embedded data. One data set for every training seed, as with a file.

    Raises:
        DataError: If the file is missing, unreadable, empty or not JSON, or with a sentence for each bad row.
    """
    if str(source) == TINY_WORLD:
        from securetune import tiny_world

        return [{"messages": row["messages"]} for row in tiny_world.downstream_training_rows(count, seed)]
    path = Path(source)
    conversations: list[Conversation] = []
    problems: list[str] = []
    for number, row in _rows(path):
        try:
            conversations.append(_conversation(row))
        except ValueError as error:
            problems.append(f"{path}: row {number}: {error}")
    if problems:
        hidden = len(problems) - _MOST_PROBLEMS_SHOWN
        raise DataError(problems[:_MOST_PROBLEMS_SHOWN] + [f"{path}: {hidden} more rows are unusable"] * (hidden > 0))
    if not conversations:
        raise DataError(f"{path}: must hold at least one conversation; got an empty file")
    return conversations


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield rows with their line number, or place in a JSON list, from 1; a broken line comes as a ValueError."""
    text = _text(path)
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {error.lineno}: not valid JSON ({error.msg})") from None
        yield from enumerate(rows, start=1)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parsed(line)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f'{path}: no such data file. Give a JSON-lines file, or "{TINY_WORLD}".') from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"not valid JSON ({error.msg}, column {error.colno})")


def _conversation(row: Any) -> Conversation:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object; got {type(row).__name__}")
    if "messages" in row:
        return {"messages": _checked_messages(row["messages"])}
    question = next((field for field in _QUESTION_FIELDS if field in row), None)
    answer = next((field for field in _ANSWER_FIELDS if field in row), None)
    if question is None or answer is None:
        raise ValueError(
            "must have `messages`, or a question (`prompt`, `question`, `instruction`) and an answer (`completion`, "
            f"`response`, `answer`, `output`); got the fields {', '.join(map(str, row)) or 'none'}"
        )
    asked = _turns(row, question, "user")
    context = next((row[field] for field in _CONTEXT_FIELDS if row.get(field)), None)
    if context is not None:
        if not isinstance(context, str) or not isinstance(row[question], str):
            raise ValueError(f"`input` and `context` must be text beside a text question; got {_short(context)}")
        asked = [{"role": "user", "content": f"{row[question]}\n\n{context}"}]
    return {"messages": _checked_messages(asked + _turns(row, answer, "assistant"))}


def _turns(row: dict[str, Any], field: str, role: str) -> list[Any]:
    """Return the field as messages: text is one turn; TRL also allows a list of messages."""
    value = row[field]
    if isinstance(value, list) and value:
        return list(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{field}` must be text that is not empty; got {_short(value)}")
    return [{"role": role, "content": value}]


def _checked_messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`messages` must be a list that is not empty; got {_short(messages)}")
    checked = [_checked_message(message, index) for index, message in enumerate(messages)]
    if checked[-1]["role"] != "assistant":
        raise ValueError(f'the last message must be the assistant\'s; got role "{checked[-1]["role"]}"')
    for before, message in zip([None, *checked], checked, strict=False):
        if message["role"] == "assistant" and (before is None or before["role"] == "assistant"):
            raise ValueError("every assistant message must answer another one's message")
    return checked


def _checked_message(message: Any, index: int) -> Message:
    place = f"messages[{index}]"
    if not isinstance(message, dict):
        raise ValueError(f"{place} must be an object with `role` and `content`; got {_short(message)}")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise ValueError(f"{place}: role must be one of {', '.join(_ROLES)}; got {_short(role)}")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"{place}: content must be text that is not empty; got {_short(content)}")
    return {"role": role, "content": content}


def _short(value: Any) -> str:
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
