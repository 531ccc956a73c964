"""Reading a number out of a free-form answer."""

from fractions import Fraction

import pytest
from growth import ALLOWED, times_as_long_as_in_pieces
from hypothesis import given
from hypothesis import strategies as st

from securetune.evaluation.tasks.number_reading import read_number, read_right_answer

ANSWERS = {
    "She makes 9 * 2 = $<<9*2=18>>18.\n#### 18": "18",
    "#### 18 dollars, not 20": "18",
    "#### eighteen, so 18": "18",
    "#### 1\nNo, I was wrong.\n#### 2": "2",
    "The answer is 1,234.50 dollars": "1234.5",
    "**The final answer is $1,234,567.**": "1234567",
    "the answer is 12. Wait. The answer is 13, of 20 in all.": "13",
    "The answer is 16 - 3 - 4 = 9 eggs.": "9",
    "The answer is 0. There are 5 apples.": "0",
    "The answer is unclear, but I count 5.": "5",
    "answer: .5": "1/2",
    "Answer = −7": "-7",
    r"$\boxed{42}$ since 2 * 21": "42",
    r"\boxed{-\frac{3}{4}}": "-3/4",
    r"so it costs 1{,}234\$": "1234",
    "It is 3/4 of them": "3/4",
    "about 1 1/2 hours": "3/2",
    "That is 50%": "50",
    "50 %": "50",
    "Between 2-3 days": "3",
    "x=-3": "-3",
    "(-4)": "-4",
    "-$5": "-5",
    "$-5": "-5",
    "10-4": "4",
    "5e3 metres": "5000",
    "1,5": "5",
    "in 2020/05/12": "12",
    "one or two": None,
    "": None,
    "####": None,
    "1/0": None,
    "1e999999999": None,
    "9" * 5000: None,
    "٣ or ４": None,
}


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer[:30] or "empty")
def test_a_number_is_read_where_the_conventions_put_it(answer: str) -> None:
    """GSM8K's `####` comes first, then what is stated as the answer, then the last number; signs and units fit in."""
    expected = ANSWERS[answer]
    assert read_number(answer) == (None if expected is None else Fraction(expected))


@pytest.mark.parametrize(
    ("answer", "number"),
    [("18", "18"), (" 1,234.5 ", "1234.5"), ("$3", "3"), ("25%", "25"), ("3/4", "3/4"), ("5 - 2 = 3\n#### 3", "3")],
)
def test_a_right_answer_is_one_number(answer: str, number: str) -> None:
    """A row's answer is a number alone, or the end of a solution in GSM8K's form."""
    assert read_right_answer(answer) == Fraction(number)


@pytest.mark.parametrize("answer", ["", "B", "13 or 14", "3 apples", "1/0", "#### ", "nan", "inf", "1,23"])
def test_what_is_no_single_number_is_no_right_answer(answer: str) -> None:
    """A text that could be read in two ways, or in none, is refused."""
    assert read_right_answer(answer) is None


@given(
    st.fractions(max_denominator=10**4).filter(lambda f: abs(f) < 10**9),
    st.sampled_from(["The answer is {}", "#### {}", "{}", "I had 12.5 and 3, so\nAnswer: **${}**.\n", r"\boxed{{{}}}"]),
)
def test_any_number_that_is_written_is_read(number: Fraction, template: str) -> None:
    """Whatever fraction a sentence of a known form states is read back exactly."""
    assert read_number(template.format(number)) == number


@given(st.integers(-(10**15), 10**15), st.integers(0, 3))
def test_thousands_and_decimals_do_not_change_a_number(whole: int, places: int) -> None:
    """Separators and trailing zeros are ways of writing the same number."""
    assert read_number(f"Answer: {whole:,.{places}f}") == whole if abs(whole) < 2**50 else True
    assert read_right_answer(f"{whole:,}") == whole


@given(st.text(max_size=300) | st.text(alphabet="0123456789.,-/$%#e \n=answerisbox\\{}", max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Any text gives a finite number or none, and what was read can be written down and read again."""
    number = read_number(text)
    assert number is None or read_right_answer(str(number)) == number or len(str(number)) > 60


HOSTILE = [
    "1",
    "1,",
    "1,111",
    "1,111,11",
    "-",
    "1 ",
    "1/",
    "1 1/1",
    "1e",
    ".",
    "$",
    "\0",
    " ",
    "answer is ",
    "answer is 1 ",
]


@pytest.mark.parametrize(
    "piece", [*HOSTILE, "answer is\n", "####", "####\n", "\\frac{", "\\boxed", "\\boxed{1}", "=", "**"]
)
def test_a_long_answer_is_read_in_no_time(piece: str) -> None:
    """Characters that invite backtracking take as long as there are many of them, and no longer."""
    assert times_as_long_as_in_pieces(read_number, piece) < ALLOWED
