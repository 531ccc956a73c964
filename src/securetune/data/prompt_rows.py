"""One prompt, and how a row of a file or of a data set becomes one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from securetune.errors import DataError

_SHOWN_PROBLEMS = 20
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Prompt:
    """One request to a chat model.

    Attributes:
        id: Unique within its file or suite.
        messages: `{"role", "content"}` mappings. The last one is from the user, or is the beginning of the assistant's
            answer, which the model then continues.
        metadata: Whatever else the row held, such as a category; never shown to the model.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last user message."""
        return next(message["content"] for message in reversed(self.messages) if message["role"] == "user")

    @cached_property
    def words(self) -> str:
        """Its words alone: without case, punctuation, spacing or typographic variants."""
        return _words(" ".join(message["content"] for message in self.messages))

    @cached_property
    def request_words(self) -> str:
        """The words of the request itself: for a prompt under an attack, of the request behind it."""
        behind = self.metadata.get("behavior") if self.metadata.get("attack") else None
        return _words(behind) if isinstance(behind, str) else self.words


@lru_cache(maxsize=1 << 16)  # a run compares the same few thousand prompts again and again
def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())) or text


def prompt_from_text(prompt_id: str, text: str, metadata: Mapping[str, Any] | None = None) -> Prompt:
    """Make a prompt of one user message."""
    return Prompt(prompt_id, ({"role": "user", "content": text},), metadata or {})


def text_problem(text: Any) -> str | None:
    """Say why a value cannot be sent to a model as text, or return None if it can.

    Long lines and marks of writing direction are kept: they may be what an attack consists of, and whatever shows them
    removes what a terminal or a page would act on.
    """
    if not isinstance(text, str) or not text.strip():
        return f"must be a text that is not empty; got {_shortened(text)}"
    if "\0" in text:
        return "must hold no NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "must be text that UTF-8 can hold; it has half of a surrogate pair"
    return None


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"


def prompt_from_row(row: Any, default_id: str) -> Prompt | str:
    """Return the prompt of a row with `prompt` or `messages`, or what is wrong with the row."""
    if not isinstance(row, dict):
        return f'must be an object with "prompt" or "messages"; got {type(row).__name__}'
    if "messages" in row:
        messages = row["messages"]
        problem = _messages_problem(messages)
    elif "prompt" in row:
        messages = [{"role": "user", "content": row["prompt"]}]
        found = text_problem(row["prompt"])
        problem = found and f'"prompt" {found}'
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
        if problem := text_problem(message.get("content")):
            return f'message {index}: "content" {problem}'
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
