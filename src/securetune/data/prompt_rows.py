"""One prompt, and how a row of a file or of a data set becomes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from securetune.errors import DataError

_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Prompt:
    """One request to a chat model.

    Attributes:
        id: Unique within its file or suite.
        messages: `{"role", "content"}` mappings, the last one from the user.
        metadata: Whatever else the row held, such as a category; never shown to the model.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]


def prompt_from_text(prompt_id: str, text: str, metadata: Mapping[str, Any] | None = None) -> Prompt:
    """Make a prompt of one user message."""
    return Prompt(prompt_id, ({"role": "user", "content": text},), metadata or {})


def prompt_from_row(row: Any, default_id: str) -> Prompt | str:
    """Return the prompt of a row with `prompt` or `messages`, or what is wrong with the row."""
    if not isinstance(row, dict):
        return f'must be an object with "prompt" or "messages"; got {type(row).__name__}'
    if "messages" in row:
        messages = row["messages"]
        problem = _messages_problem(messages)
    elif "prompt" in row:
        messages = [{"role": "user", "content": row["prompt"]}]
        is_text = isinstance(row["prompt"], str) and bool(row["prompt"].strip())
        problem = None if is_text else f'"prompt" must be a text that is not empty; got {row["prompt"]!r}'
    else:
        return f'must have "prompt" or "messages"; got the fields {", ".join(row) or "none"}'
    if problem:
        return problem
    rest = {key: value for key, value in row.items() if key not in ("id", "prompt", "messages")}
    kept = tuple({"role": message["role"], "content": message["content"]} for message in messages)
    return Prompt(str(row.get("id", default_id)), kept, rest)


def _messages_problem(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return '"messages" must be a list with at least one message'
    for index, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f'message {index} must be an object with "role" and "content"'
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            return f'message {index}: "content" must be a text that is not empty; got {message.get("content")!r}'
    if messages[-1]["role"] != "user":
        return f'the last message must be from "user"; got "{messages[-1]["role"]}"'
    return None


def usable_rows(source: str, rows: Mapping[int, Prompt | str]) -> dict[int, Prompt]:
    """Return the prompts by their numbers, if no row is bad and no two have the same `id`.

    Args:
        source: The file or data set, for the sentences.
        rows: Number of the row, from 1 → its prompt, or what is wrong with it.

    Raises:
        DataError: With a sentence a bad row, up to twenty; or for an `id` that is used twice.
    """
    problems = [f"{source}: row {number}: {row}" for number, row in rows.items() if isinstance(row, str)]
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        raise DataError(problems[:_SHOWN_PROBLEMS] + ([f"{source}: {more} more bad rows"] if more > 0 else []))
    prompts = {number: row for number, row in rows.items() if isinstance(row, Prompt)}
    _refuse_repeated_ids(source, prompts.values())
    return prompts


def _refuse_repeated_ids(source: str, prompts: Iterable[Prompt]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DataError(f'{source}: the id "{prompt.id}" is used twice; ids must be unique')
        seen.add(prompt.id)
