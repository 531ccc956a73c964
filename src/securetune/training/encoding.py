"""Conversations become token rows of limited length, with labels where a token carries loss.

A token carries loss if it holds a character of an answer that is to be learned, as `rendered_rows` finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from securetune.artifacts import TrainingData
from securetune.data.conversations import Conversation, conversations_hash
from securetune.errors import DataError, ModelError
from securetune.training.rendered_rows import LossOn, render_rows

IGNORED_LABEL = -100
_ENDING_TOKENS = 3


class EncodedConversations(NamedTuple):
    """Token rows ready for the trainer.

    Attributes:
        dataset: Columns `input_ids` and `labels`; packed sequences also have `seq_lengths`.
        counts: What was made of the conversations.
        notes: Sentences a user should read.
    """

    dataset: Dataset
    counts: TrainingData
    notes: list[str]


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    max_length: int,
    loss_on: LossOn = "answers",
) -> EncodedConversations:
    """Render and tokenize training data.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        conversations: Each ends with the assistant.
        max_length: Longest row in tokens; longer ones are cut at their end, and dropped if no token with loss is left.
        loss_on: Which tokens carry loss: those of all answers, of the last one of each conversation, or all tokens.

    Raises:
        DataError: If the template refuses a conversation (each is named), or hides which tokens are the answer; or if
            no answer is left after the cut.
        ModelError: If the tokenizer is a slow one.
    """
    if not tokenizer.is_fast:
        raise ModelError("training needs a fast tokenizer (tokenizer.json): a slow one cannot tell where a token lies")
    texts = render_rows(tokenizer, conversations, loss_on)
    encoded = tokenizer([row.text for row in texts], add_special_tokens=False, return_offsets_mapping=True)
    input_ids, labels, cut, cut_tokens, dropped = [], [], 0, 0, 0
    for row, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        cut += len(ids) > max_length
        cut_tokens += max(0, len(ids) - max_length)
        row_labels = list(ids) if loss_on == "all" else _labels(ids, offsets, row.answers)
        row_labels = row_labels[:max_length]
        if all(label == IGNORED_LABEL for label in row_labels[1:]):  # the first token is never predicted
            dropped += 1
            cut_tokens += min(len(ids), max_length)
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
        cut_tokens=cut_tokens,
        dropped_rows=dropped,
        max_length_tokens=max_length,
        tokens=sum(map(len, input_ids)),
        answer_tokens=sum(label != IGNORED_LABEL for row_labels in labels for label in row_labels),
    )
    dataset = Dataset.from_dict({"input_ids": input_ids, "labels": labels})
    return EncodedConversations(dataset, counts, _notes(tokenizer, encoded["input_ids"][0], counts))


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
            f"{counts.dropped_rows} of them had no answer left and were dropped. {counts.cut_tokens:,} of "
            f"{counts.tokens + counts.cut_tokens:,} tokens were lost."
        )
    return notes
