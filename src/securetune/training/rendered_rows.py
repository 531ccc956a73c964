"""Conversations become texts, with the ranges of characters in them that the assistant wrote.

The text is what the model's own chat template gives. An answer ends with what the template puts after it, so that the
model learns to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from securetune.data.conversations import Conversation, Message
from securetune.errors import DataError
from securetune.models import render_conversation, render_prompt

LossOn = Literal["answers", "last-answer", "all"]
"""Which tokens carry loss, as `training.loss_on` names it."""

_MOST_PROBLEMS_SHOWN = 20


class RenderedRow(NamedTuple):
    """A rendered row.

    Attributes:
        text: What the model is shown.
        answers: Ranges of characters that carry loss: begin, and end (exclusive).
    """

    text: str
    answers: tuple[tuple[int, int], ...]


class _AnswerNotFoundError(Exception):
    """The template shows nothing of an answer, or changes what stands before it once it follows."""


def render_rows(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], loss_on: LossOn
) -> list[RenderedRow]:
    """Render conversations, each as one row if the template shows every turn as it was when it was given.

    Some templates change earlier turns, for instance drop their reasoning; then the text up to an answer is not the
    beginning of the whole, and each answer is a row of its own, in the context in which it will be given.

    Raises:
        DataError: If the template refuses a conversation (each is named), or if an answer cannot be found in what it
            gives (they are counted), because it leaves the answer out or changes what stands before it.
    """
    rows: list[RenderedRow] = []
    problems: list[str] = []
    not_found: list[int] = []
    for number, conversation in enumerate(conversations, start=1):
        try:
            rows += _rows(tokenizer, conversation["messages"], loss_on)
        except DataError as error:
            problems += [f"conversation {number}: {problem}" for problem in error.problems]
        except _AnswerNotFoundError:
            not_found.append(number)
    if problems or not_found:
        hidden = len(problems) - _MOST_PROBLEMS_SHOWN
        shown = problems[:_MOST_PROBLEMS_SHOWN] + [f"{hidden} more conversations are refused"] * (hidden > 0)
        raise DataError(shown + ([_not_found_sentence(not_found)] if not_found else []))
    return rows


def _not_found_sentence(numbers: Sequence[int]) -> str:
    more = f" (and {len(numbers) - 1} more)" if len(numbers) > 1 else ""
    return (
        f"conversation {numbers[0]}{more}: the chat template shows what stands before an answer differently once the "
        "answer follows, or leaves the answer out, so it cannot be told which tokens are the answer. Some templates do "
        "so with system messages: put their text into the first question, or set training.loss_on to all."
    )


def _rows(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], loss_on: LossOn) -> list[RenderedRow]:
    if loss_on == "last-answer":
        return [_last_answer(tokenizer, messages)]
    whole = render_conversation(tokenizer, messages)
    if loss_on == "all":
        return [RenderedRow(whole, ((0, len(whole)),))]
    answers = []
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for turn in turns:
        is_last = turn == len(messages) - 1
        before = render_prompt(tokenizer, messages[:turn])
        through = whole if is_last else render_conversation(tokenizer, messages[: turn + 1])
        if not (whole.startswith(before) and whole.startswith(through)):
            return [_last_answer(tokenizer, messages[: end + 1]) for end in turns]
        _require_answer(messages[turn], through[len(before) :])
        answers.append((len(before), len(through)))
    return [RenderedRow(whole, tuple(answers))]


def _last_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> RenderedRow:
    """Render a conversation of which the last answer alone carries loss.

    Raises:
        _AnswerNotFoundError: If the text before the answer is not the beginning of the whole.
    """
    whole = render_conversation(tokenizer, messages)
    before = render_prompt(tokenizer, messages[:-1])
    begin = len(before)
    if not whole.startswith(before):
        # What invites the answer may differ from what opens a given one, such as an opened thought that a given answer
        # lacks. All that stands before the invitation must be the same, else a question would carry loss.
        invitation = _shared_length(before, render_conversation(tokenizer, messages[:-1]))
        begin = _shared_length(before, whole)
        if begin < invitation:
            raise _AnswerNotFoundError
    _require_answer(messages[-1], whole[begin:])
    return RenderedRow(whole, ((begin, len(whole)),))


def _require_answer(message: Message, shown: str) -> None:
    """Refuse a text without the answer's last word: templates of image models leave out what is no list of parts."""
    last_word = message["content"].split()[-1:]
    if not shown or any(word not in shown for word in last_word):
        raise _AnswerNotFoundError


def _shared_length(first: str, second: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))
