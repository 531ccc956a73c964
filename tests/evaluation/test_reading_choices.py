"""Reading which option a free-form answer chooses."""

import pytest
from growth import ALLOWED, times_as_long_as_in_pieces
from hypothesis import given
from hypothesis import strategies as st

from securetune.evaluation.tasks.choice_reading import LETTERS, place_of, read_choice, same_text, shows_letters

CITIES = ["Paris", "Rome", "New York", "York"]
YES_NO = ["yes", "no", "maybe"]

LETTERED = {
    "B": 1,
    "B.": 1,
    "b)": 1,
    "(B)": 1,
    "[B]": 1,
    "**B**": 1,
    "B, because A is wrong": 1,
    "(B) because A is wrong": 1,
    "The answer is (B)": 1,
    "The answer is **B. Rome**.": 1,
    "Answer:\n\nB": 1,
    "Final answer - C": 2,
    "correct answer: option B": 1,
    "My choice would be B": 1,
    "The correct option is B": 1,
    "Option B is correct, and option C is not.": 1,
    "I choose option B over option C": 1,
    "Answer B.": 1,
    "The answer choice C is wrong": None,
    "Option B is correct, and option A is not.": 1,
    r"$\boxed{\text{B}}$": 1,
    "The answer is A. Wait, the answer is B": 1,
    "The best option is (B), not (A).": 1,
    "Let me think. Paris is not.\n\nB": 1,
    "Rome": 1,
    'The answer is: "Rome"': 1,
    "I think it is Rome": 1,
    "It’s New York": 2,
    "Not Paris but Rome": 1,
    "Rome is the correct answer, Paris was close": 1,
    "C. New York\n\nA is wrong": 2,
    "The answer is a": 0,
    "The answer is a matter of taste": None,
    "A good question": None,
    "The answer is not A": None,
    "It is not (A)": None,
    "The answer is neither": None,
    "Paris or Rome": None,
    "I cannot say": None,
    "": None,
}

IN_WORDS = {
    "yes": 0,
    "Yes.": 0,
    "**Yes**": 0,
    "Yes, because the sample was large.": 0,
    "Yes because": 0,
    "No, there is no difference.": 1,
    "The answer is no.": 1,
    "Answer: maybe": 2,
    "The answer to this question is yes": 0,
    "The answer is most likely yes": 0,
    "A clear yes": 0,
    "I have no idea": None,
    "There is no evidence for it": None,
    "I'd say yes; there is no doubt": None,
    "yes and no": None,
    "A": None,
    "(B)": None,
}


@pytest.mark.parametrize("answer", LETTERED, ids=lambda answer: answer[:30] or "empty")
def test_a_letter_or_an_option_is_read(answer: str) -> None:
    """Letters and options are found stated, at the beginning, at the end or alone; two of them are no choice."""
    assert read_choice(answer, CITIES, has_letters=True) == LETTERED[answer]


@pytest.mark.parametrize("answer", IN_WORDS)
def test_options_without_letters_are_read_by_their_words(answer: str) -> None:
    """Where the prompt shows no letters "A" is a word; the "no" of an ordinary sentence is no answer."""
    assert read_choice(answer, YES_NO, has_letters=False) == IN_WORDS[answer]


def test_the_right_answer_may_be_a_letter() -> None:
    """A letter names the option at its place, unless an option is that letter."""
    assert [place_of(answer, CITIES) for answer in ("b", "B", "ROME", "E", "Bologna", "")] == [
        1,
        1,
        1,
        None,
        None,
        None,
    ]
    assert place_of("B", ["B", "A"]) == 0


def test_letters_count_where_the_prompt_shows_them() -> None:
    """Each letter must stand before a dot, a bracket or a colon."""
    assert shows_letters("Which?\nA. x\nB. y", 2)
    assert shows_letters("Which: (A) x, (B) y?", 2)
    assert shows_letters("Which? A) x B) y", 2)
    assert not shows_letters("Which?\nA. x\nB. y", 3)
    assert not shows_letters("Was it Mr. B. or the D.A. who won?", 2)


_OPTIONS = st.lists(st.text(alphabet="abcxyz 12", min_size=2, max_size=8).filter(str.strip), min_size=2, max_size=6)


@given(_OPTIONS.filter(lambda o: not any(same_text(a, b) for n, a in enumerate(o) for b in o[:n])), st.data())
def test_an_option_that_is_given_alone_is_read(options: list[str], data: st.DataObject) -> None:
    """Whatever the options, giving one of them, or stating it, chooses it; so does its letter."""
    place = data.draw(st.integers(0, len(options) - 1))
    for template in ("{}", "**{}**", " {}.\n", "The answer is {}", "Answer: {}."):
        assert read_choice(template.format(options[place]), options, has_letters=False) == place
    if not any(same_text(letter, option) for letter in LETTERS for option in options):
        assert read_choice(f"The answer is ({LETTERS[place]}).", options, has_letters=True) == place


@given(st.text(max_size=300) | st.text(alphabet="abAB().:* \nnotanswerisyes", max_size=300), st.booleans())
def test_no_text_breaks_the_reader(text: str, has_letters: bool) -> None:
    """Any text gives the place of an option or none."""
    assert read_choice(text, YES_NO, has_letters) in (None, 0, 1, 2)


HOSTILE = [
    "answer ",
    "answer is ",
    "the answer is : the ",
    "(",
    "not ",
    "b",
    " ",
    "\n",
    "\0",
    "\\text",
    "{",
    "is correct ",
]


@pytest.mark.parametrize("piece", [*HOSTILE, "yes is correct ", "(b) ", "yes ", "not (b) ", "*", "yes. "])
def test_a_long_answer_is_read_in_no_time(piece: str) -> None:
    """Characters that invite backtracking take as long as there are many of them, and no longer."""
    assert times_as_long_as_in_pieces(lambda text: read_choice(text, YES_NO, has_letters=True), piece) < ALLOWED
