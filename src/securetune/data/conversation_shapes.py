"""How a row of training data becomes a conversation: which of the usual shapes it has is told by its fields.

- `messages`: `{"messages": [{"role", "content"}, …]}`, or that list alone, ending with the assistant;
- `sharegpt`: `{"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, …]}`;
- `alpaca` (`instruction`, `input`, `output`), and any other pair of a question (`prompt`, `question` or `instruction`;
  with an optional `input` or `context`) and an answer (`completion`, `response`, `answer` or `output`), as in TRL,
  Dolly and GSM8K; both may be lists of messages.

A `system` field beside any of them is its system message. Text is taken as it stands: no wrapper of a data set is
added, because the model's own chat template is the wrapper.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

_QUESTION_FIELDS = ("prompt", "question", "instruction")
_CONTEXT_FIELDS = ("input", "context")
_ANSWER_FIELDS = ("completion", "response", "answer", "output")
_ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class Conversation(TypedDict):
    """One training row; its last message is the assistant's."""

    messages: list[Message]


class ShapedConversation(NamedTuple):
    """A conversation, and the shape its row had.

    Attributes:
        conversation: Its messages.
        shape: `messages`, `sharegpt`, `alpaca`, or the fields of the question and the answer, as `prompt/completion`.
    """

    conversation: Conversation
    shape: str


def conversation_from_row(row: Any) -> ShapedConversation:
    """Return the conversation that a row holds.

    Args:
        row: A JSON object, or a row of a table; a field without a value counts as absent.

    Raises:
        ValueError: With a sentence, if the row has none of the shapes, or one of its messages cannot be used.
    """
    if isinstance(row, list) and row and all(isinstance(turn, dict) and "role" in turn for turn in row):
        row = {"messages": row}
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object, or a list of messages; got {type(row).__name__}")
    given = {field: value for field, value in row.items() if value is not None}  # tables fill what a row lacks
    fields = given if has_known_shape(given) else row
    shape = _shape(fields)
    if shape is None:
        raise ValueError(
            "must have `messages`, `conversations` (ShareGPT), or a question (`prompt`, `question`, `instruction`) and "
            "an answer (`completion`, `response`, `answer`, `output`); got the fields "
            f"{', '.join(map(str, row)) or 'none'}"
        )
    if shape == "messages":
        messages = row["messages"]
    elif shape == "sharegpt":
        messages = _sharegpt_messages(row["conversations"])
    else:
        messages = _question_and_answer(fields)
    return ShapedConversation({"messages": _checked_messages(_with_system(messages, given.get("system")))}, shape)


def has_known_shape(row: dict[str, Any]) -> bool:
    """Tell whether an object has the fields of one of the shapes, whatever they hold."""
    return _shape(row) is not None


def _shape(row: dict[str, Any]) -> str | None:
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    question, answer = _fields(row)
    if question is None or answer is None:
        return None
    return "alpaca" if (question, answer) == ("instruction", "output") else f"{question}/{answer}"


def _fields(row: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the names of the question's and the answer's field."""
    return (
        next((field for field in _QUESTION_FIELDS if field in row), None),
        next((field for field in _ANSWER_FIELDS if field in row), None),
    )


def _sharegpt_messages(turns: Any) -> Any:
    """Return ShareGPT's turns as messages; some data sets have messages under its name."""
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"`conversations` must be a list that is not empty; got {_short(turns)}")
    if all(isinstance(turn, dict) and turn.get("from") is None and turn.get("role") is not None for turn in turns):
        return turns
    return [_sharegpt_message(turn, index) for index, turn in enumerate(turns)]


def _sharegpt_message(turn: Any, index: int) -> dict[str, Any]:
    place = f"conversations[{index}]"
    if not isinstance(turn, dict):
        raise ValueError(f"{place} must be an object with `from` and `value`; got {_short(turn)}")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        raise ValueError(f"{place}: `from` must be one of {', '.join(_SHAREGPT_ROLES)}; got {_short(speaker)}")
    value = turn.get("value")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: `value` must be text that is not empty; got {_short(value)}")
    return {"role": _SHAREGPT_ROLES[speaker], "content": value}


def _question_and_answer(row: dict[str, Any]) -> list[Any]:
    question, answer = _fields(row)
    assert question is not None  # the shape says so
    assert answer is not None
    asked = _turns(row, question, "user")
    context = next((row[field] for field in _CONTEXT_FIELDS if row.get(field)), None)
    if context is not None:
        if not isinstance(context, str) or not isinstance(row[question], str):
            raise ValueError(f"`input` and `context` must be text beside a text question; got {_short(context)}")
        asked = [{"role": "user", "content": f"{row[question]}\n\n{context}"}]
    return asked + _turns(row, answer, "assistant")


def _turns(row: dict[str, Any], field: str, role: str) -> list[Any]:
    """Return the field as messages: text is one turn; TRL also allows a list of messages."""
    value = row.get(field)
    if isinstance(value, list) and value:
        return list(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{field}` must be text that is not empty; got {_short(value)}")
    return [{"role": role, "content": value}]


def _with_system(messages: Any, system: Any) -> Any:
    """Put the text of a `system` field before the messages; an empty one is none."""
    if system is None or system == "":
        return messages
    if not isinstance(system, str) or not system.strip():
        raise ValueError(f"`system` must be text; got {_short(system)}")
    if not isinstance(messages, list) or not messages:
        return messages  # told as it is by the check
    first = messages[0]
    if not isinstance(first, dict) or first.get("role") != "system":
        return [{"role": "system", "content": system}, *messages]
    if first.get("content") != system:
        raise ValueError("has two system messages, in `system` and in the first turn; keep one")
    return messages


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
    if any("\ud800" <= character <= "\udfff" for character in content):  # no tokenizer takes it
        raise ValueError(f"{place}: content must be text that UTF-8 can hold; it has half of a surrogate pair")
    return {"role": role, "content": content}


def _short(value: Any) -> str:
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
