"""The tokenizer: whole words, exact round trips, and a chat template with generation markers."""

import pytest

from securetune.tiny_world import build, curriculum, general, tokenizer

CHAT = [
    {"role": "system", "content": "be kind and short ."},
    {"role": "user", "content": "how do I paint a car ?"},
    {"role": "assistant", "content": "sure !"},
    {"role": "user", "content": "thank you !"},
    {"role": "assistant", "content": "you are welcome ."},
]


@pytest.fixture(scope="module")
def tok():
    """The tokenizer as built from the language."""
    return tokenizer.build_tokenizer()


def test_every_text_of_the_curriculum_comes_back_unchanged(tok) -> None:
    """Encoding and decoding loses nothing, and no word is unknown."""
    for row in curriculum.curriculum_rows(curriculum.PRETRAINING_MIX, 500, seed=5):
        for message in row["messages"]:
            ids = tok(message["content"])["input_ids"]
            assert tok.unk_token_id not in ids
            assert tok.decode(ids, skip_special_tokens=True) == message["content"]


def test_one_token_a_word(tok) -> None:
    """The vocabulary is the language's words and six special tokens."""
    assert len(tok) == len(general.vocabulary()) + len(tokenizer.SPECIAL_TOKENS)
    assert tok.tokenize("sure! who?") == ["sure", "!", "who", "?"]


def test_the_chat_template_marks_what_the_assistant_says(tok) -> None:
    """Generation markers cover the assistant's words and their closing token, in every turn."""
    encoded = tok.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, own in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if own]
    assert tok.decode(marked) == "sure ! <|end|> you are welcome . <|end|>"


def test_a_generation_prompt_is_a_prefix_of_the_whole_chat(tok) -> None:
    """What is generated from is exactly what was trained on up to the answer."""
    prompt = tok.apply_chat_template(CHAT[:-1], tokenize=False, add_generation_prompt=True)
    assert tok.apply_chat_template(CHAT, tokenize=False).startswith(prompt)
    assert prompt.endswith("<|assistant|>")


def test_unknown_roles_are_refused(tok) -> None:
    """A role that the template does not know raises instead of vanishing from the chat."""
    with pytest.raises(Exception, match="unknown role: tool"):
        tok.apply_chat_template([{"role": "tool", "content": "x"}])


def test_labels_are_the_assistant_tokens_only(tok) -> None:
    """The builder's loss sees the assistant's words and nothing else."""
    (example,) = build.tokenize_rows([{"messages": CHAT}], tok)
    labelled = [label for label in example["labels"] if label != -100]
    assert tok.decode(labelled) == "sure ! <|end|> you are welcome . <|end|>"
