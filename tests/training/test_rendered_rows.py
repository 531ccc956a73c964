"""Which tokens carry loss, under chat templates that trim, that have system messages, and that change earlier turns."""

import re
from pathlib import Path

import pytest
import trl
from tiny_models import make_tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from securetune.config import TrainingSettings
from securetune.data.conversations import Conversation
from securetune.errors import DataError
from securetune.training.encoding import IGNORED_LABEL, encode_conversations
from securetune.training.rendered_rows import LossOn, render_rows


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


CONVERSATION: Conversation = {
    "messages": [
        turn("user", " how do I wash a car ? "),
        turn("assistant", " sure take the car "),
        turn("user", "can I sell the car ?"),
        turn("assistant", "yes first wash the car "),
    ]
}
WITH_SYSTEM: Conversation = {"messages": [turn("system", "tell me today"), *CONVERSATION["messages"]]}
FIRST, SECOND, END = "sure take the car <eos>", "yes first wash the car <eos>", "<eos>"

PLAIN = make_tiny_tokenizer().chat_template
TRIMMING = PLAIN.replace("message['content']", "(message['content'] | trim)")
SYSTEM = PLAIN.replace("{{ raise_exception('only user and assistant') }}", "{{ ' <unk> ' + message['content'] }}")
WITHOUT_INVITATION = PLAIN.replace("' <assistant> ' + ", "' ' + ").replace("' <assistant>'", "''")
"""As Llama 2 has it: nothing stands between a question and its answer."""
END_OF_ALL = PLAIN.replace("{{ ' <assistant>' }}{% endif %}", "{{ ' <assistant>' }}{% else %}{{ ' <eos>' }}{% endif %}")
"""As Phi-3 has it: the end of the text is marked too, so no beginning of a conversation is one of the whole."""
THINKING = PLAIN.replace("{{ ' <assistant>' }}{% endif %}", "{{ ' <assistant> then' }}{% endif %}")
"""As reasoning models have it: the invitation opens a thought, which a given answer lacks."""
SYSTEM_LAST = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' <user> ' }}"
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% endif %}"
    "{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' <assistant> ' + message['content'] + ' <eos>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)
"""As some of Mistral's have it: the system message stands in the last question, and nowhere if an answer follows."""

CASES = {
    "plain": (PLAIN, CONVERSATION),
    "trimming": (TRIMMING, CONVERSATION),
    "system": (SYSTEM, WITH_SYSTEM),
    "trimming, system": (SYSTEM.replace("message['content']", "(message['content'] | trim)"), WITH_SYSTEM),
    "without invitation": (WITHOUT_INVITATION, CONVERSATION),
    "end of all": (END_OF_ALL, CONVERSATION),
    "thinking": (THINKING, CONVERSATION),
}
ENDED_TWICE = {"end of all"}
A_ROW_AN_ANSWER = {"end of all", "thinking"}


def learned(template: str, conversation: Conversation, loss_on: LossOn) -> list[str]:
    tokenizer = tokenizer_with(template)
    rows = encode_conversations(tokenizer, [conversation], 64, loss_on).dataset
    for row in rows:
        assert all(
            label in (IGNORED_LABEL, token) for label, token in zip(row["labels"], row["input_ids"], strict=True)
        )
    return [tokenizer.decode([label for label in row["labels"] if label != IGNORED_LABEL]) for row in rows]


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("case", CASES)
def test_every_answer_is_learned(case: str) -> None:
    """Under any template every answer and its end are learned once, and no word of a question."""
    end = f" {END}" * (case in ENDED_TWICE)
    expected = [FIRST + end, SECOND + end] if case in A_ROW_AN_ANSWER else [f"{FIRST} {SECOND}"]
    assert learned(*CASES[case], "answers") == expected


@pytest.mark.parametrize("case", CASES)
def test_the_last_answer_alone(case: str) -> None:
    """`last-answer` learns the final answer and its end, in one row with all that stands before it."""
    template, conversation = CASES[case]
    assert learned(template, conversation, "last-answer") == [SECOND + f" {END}" * (case in ENDED_TWICE)]
    row = encode_conversations(tokenizer_with(template), [conversation], 64, "last-answer").dataset[0]
    assert "sure take the car" in tokenizer_with(template).decode(row["input_ids"])


@pytest.mark.parametrize("case", CASES)
def test_all_tokens(case: str) -> None:
    """`all` learns every token of one row, the questions and the template's words too."""
    template, conversation = CASES[case]
    encoded = encode_conversations(tokenizer_with(template), [conversation], 64, "all")
    assert len(encoded.dataset) == 1
    assert encoded.dataset[0]["labels"] == encoded.dataset[0]["input_ids"]
    assert encoded.counts.answer_tokens == encoded.counts.tokens


@pytest.mark.parametrize("loss_on", ["answers", "last-answer"])
def test_an_answer_that_cannot_be_found(loss_on: LossOn) -> None:
    """A template that shows a question differently once it is answered is refused in one sentence."""
    conversations = [CONVERSATION, WITH_SYSTEM, WITH_SYSTEM]
    with pytest.raises(DataError, match="differently once the answer follows") as caught:
        encode_conversations(tokenizer_with(SYSTEM_LAST), conversations, 64, loss_on)
    (problem,) = caught.value.problems
    assert problem.startswith("conversation 2 (and 1 more): ")
    assert problem.endswith("set training.loss_on to all.")
    assert len(encode_conversations(tokenizer_with(SYSTEM_LAST), conversations, 64, "all").dataset) == 3


TEMPLATES_OF_TRL = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
FOR_IMAGES = ("idefics3", "llava_next", "smolvlm")
"""They take lists of parts only, and are refused."""


@pytest.mark.parametrize("file", TEMPLATES_OF_TRL, ids=lambda file: file.stem)
@pytest.mark.parametrize("has_system", [False, True], ids=["", "system"])
def test_real_templates(file: Path, has_system: bool) -> None:
    """Under the templates of real models each answer is found once, and no word of a question or a system message."""
    tokenizer = tokenizer_with(file.read_text())
    messages = [turn("user", " Ask1 "), turn("assistant", " Say1 "), turn("user", "Ask2"), turn("assistant", "Say2\n")]
    conversation: Conversation = {"messages": [turn("system", "Rule"), *messages] if has_system else messages}
    if file.stem.startswith(FOR_IMAGES) or (has_system and file.stem in ("gemma", "gemma_training")):
        with pytest.raises(DataError):
            render_rows(tokenizer, [conversation], "answers")
        return
    for loss_on, said in (("answers", ["Say1", "Say2"]), ("last-answer", ["Say2"])):
        rows = render_rows(tokenizer, [conversation], loss_on)
        learned = " ".join(row.text[begin:end] for row in rows for begin, end in row.answers)
        assert re.findall("Ask1|Say1|Ask2|Say2|Rule", learned) == said
        assert ("Rule" in rows[-1].text) == has_system


def test_there_are_real_templates() -> None:
    """TRL brings templates of dozens of models."""
    assert len(TEMPLATES_OF_TRL) > 40


def test_a_template_without_answers() -> None:
    """A template that shows nothing of an answer is refused."""
    with pytest.raises(DataError, match="cannot be told which tokens are the answer"):
        encode_conversations(
            tokenizer_with("{% for message in messages[::2] %} <user> {{ message['content'] }}{% endfor %}"),
            [CONVERSATION],
            64,
        )


def test_all_answers_are_the_default() -> None:
    """Unless it is set, the answers carry loss, in the settings as in the function."""
    assert TrainingSettings().loss_on == "answers"
    tokenizer = tokenizer_with(PLAIN)
    left_out, named = (
        encode_conversations(tokenizer, [CONVERSATION], 64, *more).dataset[0]["labels"] for more in ([], ["answers"])
    )
    assert left_out == named
