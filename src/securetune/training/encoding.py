"""Conversations become token rows; only the assistant's words carry loss.

The text is what the model's own chat template gives. A token carries loss if it holds a character of an assistant turn,
the end of the turn included, so that the model learns to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from securetune.artifacts import TrainingData, sha256_json
from securetune.data.conversations import Conversation, Message
from securetune.errors import DataError, ModelError
from securetune.models import render_conversation, render_prompt

IGNORED_LABEL = -100
_MOST_PROBLEMS_SHOWN = 20
_ENDING_TOKENS = 3


class EncodedConversations(NamedTuple):
    """Token rows ready for the trainer.

    Attributes:
        dataset: Columns `input_ids` and `labels`.
        counts: What was made of the conversations.
        notes: Sentences a user should read.
    """

    dataset: Dataset
    counts: TrainingData
    notes: list[str]


class _Text(NamedTuple):
    """A rendered row, and the character ranges of it that carry loss."""

    text: str
    answers: tuple[tuple[int, int], ...]


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], max_length: int
) -> EncodedConversations:
    """Render and tokenize training data.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        conversations: Each ends with the assistant.
        max_length: Longest row in tokens; longer ones are cut at their end.

    Raises:
        DataError: If the template refuses a conversation (each is named), or no answer is left after the cut.
        ModelError: If the tokenizer is a slow one.
    """
    if not tokenizer.is_fast:
        raise ModelError("training needs a fast tokenizer (tokenizer.json): a slow one cannot tell where a token lies")
    texts = _rendered(tokenizer, conversations)
    encoded = tokenizer([row.text for row in texts], add_special_tokens=False, return_offsets_mapping=True)
    input_ids, labels, cut, dropped = [], [], 0, 0
    for row, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        cut += len(ids) > max_length
        row_labels = _labels(ids, offsets, row.answers)[:max_length]
        if all(label == IGNORED_LABEL for label in row_labels[1:]):  # the first token is never predicted
            dropped += 1
            continue
        input_ids.append(ids[:max_length])
        labels.append(row_labels)
    if not input_ids:
        raise DataError(f"max_length must leave a part of an answer; got {max_length}, which leaves none in any row")
    counts = TrainingData(
        hash=conversations_hash(conversations),
        conversations=len(conversations),
        rows=len(texts),
        cut_rows=cut,
        dropped_rows=dropped,
        max_length_tokens=max_length,
        tokens=sum(map(len, input_ids)),
        answer_tokens=sum(label != IGNORED_LABEL for row_labels in labels for label in row_labels),
    )
    dataset = Dataset.from_dict({"input_ids": input_ids, "labels": labels})
    return EncodedConversations(dataset, counts, _notes(tokenizer, encoded["input_ids"][0], counts))


def conversations_hash(conversations: Sequence[Conversation]) -> str:
    """Hash the content of training data, independently of the file format it came in."""
    return sha256_json([list(conversation["messages"]) for conversation in conversations])


def _rendered(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[_Text]:
    texts: list[_Text] = []
    problems: list[str] = []
    for number, conversation in enumerate(conversations, start=1):
        try:
            texts += _texts(tokenizer, conversation["messages"])
        except DataError as error:
            problems += [f"conversation {number}: {problem}" for problem in error.problems]
    if problems:
        hidden = len(problems) - _MOST_PROBLEMS_SHOWN
        raise DataError(problems[:_MOST_PROBLEMS_SHOWN] + [f"{hidden} more conversations are refused"] * (hidden > 0))
    return texts


def _texts(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[_Text]:
    """Render one conversation: as one text if the template shows every turn as it was, else one text an answer.

    Some templates change earlier turns, for instance drop their reasoning; then the text up to an answer is not the
    beginning of the whole, and each answer is learned in the context in which it will be given.
    """
    whole = render_conversation(tokenizer, messages)
    answers = []
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for turn in turns:
        is_last = turn == len(messages) - 1
        before = render_prompt(tokenizer, messages[:turn])
        through = whole if is_last else render_conversation(tokenizer, messages[: turn + 1])
        if not (whole.startswith(before) and whole.startswith(through)):
            return [_last_answer(tokenizer, messages[: end + 1]) for end in turns]
        answers.append((len(before), len(through)))
    return [_Text(whole, tuple(answers))]


def _last_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> _Text:
    whole = render_conversation(tokenizer, messages)
    before = render_prompt(tokenizer, messages[:-1])
    start = next((i for i, pair in enumerate(zip(whole, before, strict=False)) if pair[0] != pair[1]), len(before))
    return _Text(whole, ((start, len(whole)),))


def _labels(ids: Sequence[int], offsets: Sequence[tuple[int, int]], answers: tuple[tuple[int, int], ...]) -> list[int]:
    if len(answers) == 1:  # nearly every row; a loop over answers for every token takes twice the time
        begin, stop = answers[0]
        return [
            token if end > begin and start < stop else IGNORED_LABEL
            for token, (start, end) in zip(ids, offsets, strict=True)
        ]
    return [
        token if any(end > begin and start < stop for begin, stop in answers) else IGNORED_LABEL
        for token, (start, end) in zip(ids, offsets, strict=True)
    ]


def _notes(tokenizer: PreTrainedTokenizerBase, first_row: Sequence[int], counts: TrainingData) -> list[str]:
    notes = []
    if tokenizer.eos_token_id not in first_row[-_ENDING_TOKENS:]:
        notes.append(
            f"The chat template does not end an answer with the end token {tokenizer.eos_token!r}: the tuned model may "
            "not know when to stop."
        )
    if counts.cut_rows:
        notes.append(
            f"{counts.cut_rows} of {counts.rows} rows were longer than {counts.max_length_tokens} tokens and were cut; "
            f"{counts.dropped_rows} of them had no answer left and were dropped."
        )
    return notes
