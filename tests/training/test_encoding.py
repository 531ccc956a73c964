"""Conversations become token rows: what is shown, what carries loss, what is cut."""

import pytest
from tiny_models import make_tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from securetune.data.conversations import Conversation
from securetune.errors import DataError, ModelError
from securetune.models.rendering import prompt_token_ids
from securetune.training.encoding import IGNORED_LABEL, encode_conversations


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


ONE_TURN: Conversation = {"messages": [turn("user", "how do I wash a car ?"), turn("assistant", "sure take the car")]}
TWO_TURNS: Conversation = {"messages": [*ONE_TURN["messages"], turn("user", "how ?"), turn("assistant", "first find")]}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tiny_tokenizer()


def trained_words(tokenizer: PreTrainedTokenizerFast, labels: list[int]) -> str:
    return tokenizer.decode([label for label in labels if label != IGNORED_LABEL])


def test_only_the_answer_carries_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    """The question and the template's words are context; the answer and its end are learned."""
    row = encode_conversations(tokenizer, [ONE_TURN], 64).dataset[0]
    assert tokenizer.decode(row["input_ids"]) == (
        "<bos> <user> how do I wash a car ? <assistant> sure take the car <eos>"
    )
    assert trained_words(tokenizer, row["labels"]) == "sure take the car <eos>"


def test_a_row_begins_with_the_prompt_that_evaluation_uses(tokenizer: PreTrainedTokenizerFast) -> None:
    """The tokens before the answer are exactly those that the model is given when it is asked."""
    row = encode_conversations(tokenizer, [ONE_TURN], 64).dataset[0]
    (prompt,) = prompt_token_ids(tokenizer, [ONE_TURN["messages"][:-1]])
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [IGNORED_LABEL] * len(prompt)
    assert row["labels"][len(prompt)] != IGNORED_LABEL


def test_every_assistant_turn_carries_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    """A conversation of several turns is one row, in which each answer is learned."""
    encoded = encode_conversations(tokenizer, [TWO_TURNS], 64)
    assert len(encoded.dataset) == 1
    assert trained_words(tokenizer, encoded.dataset[0]["labels"]) == "sure take the car <eos> first find <eos>"


def test_a_template_that_changes_earlier_turns() -> None:
    """If the template shows earlier answers differently, each answer is a row of its own, in its own context."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ '<bos>' }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ ' <user> ' + message['content'] }}"
        "{% elif loop.last %}{{ ' <assistant> ' + message['content'] + ' <eos>' }}{% else %}{{ ' <assistant> yes' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
    )
    encoded = encode_conversations(tokenizer, [TWO_TURNS], 64)
    assert [tokenizer.decode(row["input_ids"]) for row in encoded.dataset] == [
        "<bos> <user> how do I wash a car ? <assistant> sure take the car <eos>",
        "<bos> <user> how do I wash a car ? <assistant> yes <user> how ? <assistant> first find <eos>",
    ]
    assert [trained_words(tokenizer, row["labels"]) for row in encoded.dataset] == [
        "sure take the car <eos>",
        "first find <eos>",
    ]
    assert (encoded.counts.conversations, encoded.counts.rows) == (1, 2)


def test_long_rows_are_cut_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    """A row past the longest length is cut at its end; one without any answer left is dropped; both are counted."""
    long_question: Conversation = {"messages": [turn("user", "how " * 30), turn("assistant", "yes")]}
    encoded = encode_conversations(tokenizer, [ONE_TURN, TWO_TURNS, long_question], 16)
    counts = encoded.counts
    assert (counts.rows, counts.cut_rows, counts.dropped_rows, len(encoded.dataset)) == (3, 2, 1, 2)
    assert max(len(row["input_ids"]) for row in encoded.dataset) == 16
    assert any("2 of 3 rows were longer than 16 tokens" in note for note in encoded.notes)
    assert counts.tokens == sum(len(row["input_ids"]) for row in encoded.dataset)
    uncut = encode_conversations(tokenizer, [ONE_TURN, TWO_TURNS, long_question], 64).counts
    assert (uncut.cut_rows, uncut.cut_tokens, uncut.dropped_rows) == (0, 0, 0)
    assert counts.cut_tokens == uncut.tokens - counts.tokens > 0
    assert any(f"{counts.cut_tokens} of {uncut.tokens} tokens were lost" in note for note in encoded.notes)


def test_no_answer_left_at_all(tokenizer: PreTrainedTokenizerFast) -> None:
    """A longest length that leaves no answer in any row is an error, not a training on nothing."""
    with pytest.raises(DataError, match="max_length must leave a part of an answer; got 3"):
        encode_conversations(tokenizer, [ONE_TURN], 3)


def test_refused_conversations_are_all_named(tokenizer: PreTrainedTokenizerFast) -> None:
    """Each conversation that the chat template refuses is named by its number."""
    with_system: Conversation = {"messages": [turn("system", "x"), *ONE_TURN["messages"]]}
    with pytest.raises(DataError) as caught:
        encode_conversations(tokenizer, [ONE_TURN, with_system, ONE_TURN, with_system], 64)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["conversation 2", "conversation 4"]


def test_a_template_that_never_ends_an_answer() -> None:
    """A template without an end token after the answer is noted: the model would not learn to stop."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(" + ' <eos>'", "")
    assert (
        "does not end an answer with the end token '<eos>'" in encode_conversations(tokenizer, [ONE_TURN], 64).notes[0]
    )
    assert encode_conversations(make_tiny_tokenizer(), [ONE_TURN], 64).notes == []


def test_a_slow_tokenizer_is_refused(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that cannot tell where its tokens lie is refused with a sentence."""
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ModelError, match="training needs a fast tokenizer"):
        encode_conversations(tokenizer, [ONE_TURN], 64)


def test_all_rows_are_tokenized_at_once(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows there are, the tokenizer is called once: a call for each takes minutes for a whole run."""
    tokenize, texts = type(tokenizer).__call__, []
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, text, **options: texts.append(text) or tokenize(self, text, **options)
    )
    assert encode_conversations(tokenizer, [ONE_TURN] * 640, 64).counts.rows == 640
    assert [len(text) for text in texts] == [640]
