"""The verdict: computed from the numbers, whichever way they came out."""

import pytest

from securetune.artifacts import MethodComparison, MetricDifference, MetricSummary
from securetune.reporting.verdict import control_sentence, display_name, verdict_sentence


def metric(mean: float, half: float = 0.05) -> MetricSummary:
    return MetricSummary(mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), per_seed=[mean])


def row(
    asr: float | None,
    accuracy: float | None = 0.99,
    against: float | None = None,
    **changes: object,
) -> MethodComparison:
    change = None if against is None else MetricDifference(mean=against, low=against - 0.05, high=against + 0.05)
    fields = {
        "method": "swat",
        "is_control": False,
        "seeds": [0, 1, 2],
        "asr": None if asr is None else metric(asr),
        "asr_minus_ift": change,
        "harmfulness": None,
        "task_accuracy": None if accuracy is None else metric(accuracy, 0.01),
        "over_refusal": None,
        "wrapped_asr": {},
        "suite_asr": {},
        "unusable_share": 0.0,
        "update_norms": None,
        **changes,
    }
    return MethodComparison.model_validate(fields)


START, IFT = row(0.01, 0.0), row(0.72)

CASES = {
    "helps": (
        {"start": START, "ift": IFT, "swat": row(0.45, against=-0.27)},
        "Plain fine-tuning (IFT) raised the attack success rate from 1.0% to 72.0%; "
        "SWAT kept it at 45.0% (0.62 × IFT's) at the same task accuracy (99.0%).",
    ),
    "helps at a cost": (
        {"start": START, "ift": IFT, "ml-lr": row(0.30, accuracy=0.90, against=-0.42)},
        "Plain fine-tuning (IFT) raised the attack success rate from 1.0% to 72.0%; "
        "ML-LR kept it at 30.0% (0.42 × IFT's) at a task accuracy of 90.0%, 9.0 points below IFT's.",
    ),
    "does not help": (
        {"start": START, "ift": IFT, "swat": row(0.70, against=-0.02)},
        "Plain fine-tuning (IFT) raised the attack success rate from 1.0% to 72.0%; "
        "SWAT does not clearly help here: 70.0% at the same task accuracy (99.0%).",
    ),
    "makes it worse": (
        {"start": START, "ift": IFT, "swat": row(0.90, accuracy=None, against=0.18)},
        "Plain fine-tuning (IFT) raised the attack success rate from 1.0% to 72.0%; "
        "SWAT made it worse: 90.0% (task accuracy was not measured).",
    ),
    "nothing eroded": (
        {"start": START, "ift": row(0.03), "swat": row(0.02, against=-0.01)},
        "Plain fine-tuning (IFT) did not clearly raise the attack success rate (from 1.0% to 3.0%), so this run can "
        "hardly show whether a method protects; "
        "SWAT does not clearly help here: 2.0% at the same task accuracy (99.0%).",
    ),
    "controls are left out": (
        {"start": START, "ift": IFT, "swat-sensitive": row(0.9, against=0.18, is_control=True)},
        "Plain fine-tuning (IFT) raised the attack success rate from 1.0% to 72.0%; no other method is complete yet.",
    ),
    "no baseline": (
        {"start": START, "swat": row(0.4)},
        "Plain fine-tuning (IFT) is not part of this run, so there is nothing to compare the methods with.",
    ),
    "no start": (
        {"ift": IFT},
        "The start model has not been evaluated on harmful prompts, so nothing can be said about safety yet.",
    ),
}


@pytest.mark.parametrize(("rows", "expected"), CASES.values(), ids=CASES)
def test_the_verdict_follows_from_the_numbers(rows: dict[str, MethodComparison], expected: str) -> None:
    """Good and bad news alike are one sentence, and what is missing is said."""
    assert verdict_sentence(rows) == expected


@pytest.mark.parametrize(
    ("asr", "word"), [(0.80, "clearly worse"), (0.10, "clearly better"), (0.47, "not clearly different")]
)
def test_the_control_says_whether_the_choice_matters(asr: float, word: str) -> None:
    """SWAT on other modules is compared with SWAT on the chosen ones, also if that speaks against the choice."""
    rows = {"swat": row(0.45), "swat-random": row(asr, is_control=True)}
    sentence = control_sentence(rows)
    assert sentence is not None
    assert f"is {word} (swat-random {asr:.1%}, SWAT 45.0%)" in sentence


def test_without_a_control_nothing_is_said_of_the_choice() -> None:
    """No control, no claim; a frozen plain run says nothing of the choice of modules either."""
    assert control_sentence({"swat": row(0.45)}) is None
    assert control_sentence({"swat": row(0.45), "ift-frozen": row(0.7, is_control=True, method="ift")}) is None


def test_labels_of_the_user_are_left_as_they_are() -> None:
    """Only the known methods have a name of their own."""
    assert [display_name(label) for label in ("ml-lr", "swat-2")] == ["ML-LR", "swat-2"]


def test_of_many_methods_the_best_and_the_papers_own_are_named() -> None:
    """More than six are counted, as clearly below plain tuning at its accuracy or not; the rest is in the table."""
    rates = {"a": 0.3, "b": 0.1, "c": 0.2, "d": 0.4, "e": 0.5, "swat": 0.6, "worse": 0.9}
    rows = {label: row(rate, against=rate - 0.72) for label, rate in rates.items()}
    unlearned = {"unlearned": row(0.0, accuracy=0.5, against=-0.72)}
    sentence = verdict_sentence({"start": START, "ift": IFT, **rows, **unlearned})
    opening, counted, *clauses, last = sentence.split("; ")
    assert opening.endswith("to 72.0%")
    assert counted == "6 of 8 methods ended clearly below that at the same task accuracy"
    assert [clause.split(" ")[0] for clause in clauses] == ["b", "c", "a", "SWAT"]
    assert last == "the table has all of them."
