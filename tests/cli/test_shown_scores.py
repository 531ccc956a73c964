"""What `securetune evaluate` and `securetune judge` print of the scores."""

from pathlib import Path

import pytest

from securetune.artifacts import (
    AnswerProblems,
    MeanEstimate,
    ModelIdentity,
    RateEstimate,
    Scores,
    SuiteScores,
    TaskScores,
)
from securetune.cli.shown_scores import show_scores

MODEL = ModelIdentity(
    name="m", revision=None, architecture="A", parameter_count=1, weights_fingerprint="w", chat_template_hash="c"
)


def test_each_judge_says_what_it_tells(capsys: pytest.CaptureFixture[str]) -> None:
    """A judge of attacks alone has its line, unreadable verdicts are said, and a judge that told nothing has none."""
    rate = RateEstimate.from_counts(1, 4)
    suite = SuiteScores(
        name="ours",
        kind="harmful",
        wrapper=None,
        prompt_set_hash="x",
        count=5,
        refusal_rate={"both": rate},
        attack_success_rate={"both": rate, "attacks": rate},
        harmfulness={"both": MeanEstimate(value=2.0, low=1.0, high=3.0, count=4)},
        unjudged={"attacks": 1, "lost": 5},
        problems=AnswerProblems(empty=0, looping=0, truncated=0),
        unusable_successes={},
    )
    judges = dict.fromkeys(("both", "attacks", "lost", "silent"), "")
    scores = Scores(
        model=MODEL, settings={}, judges=judges, suites=[suite], task=None, duration_seconds={}, environment={}
    )
    show_scores(scores, Path("out"))
    share = "0.250 [0.046, 0.699] of 4"
    assert capsys.readouterr().out.splitlines()[:-1] == [
        f"ours, judged by both: refused {share}, attack success {share}, mean harmfulness (1–5) 2.00 [1.00, 3.00]",
        f"ours, judged by attacks: attack success {share}, 1 of 5 unjudged",
        "ours, judged by lost: 5 of 5 unjudged",
    ]


@pytest.mark.parametrize(("unparsable", "told"), [(0, ""), (3, ", 3 of 4 answers could not be read")])
def test_a_task_says_its_rule_and_what_could_not_be_read(
    unparsable: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rule stands beside the accuracy, and answers that could not be read are counted where there are any."""
    task = TaskScores(
        name="sums",
        prompt_set_hash="x",
        rule="numeric",
        accuracy=RateEstimate.from_counts(1, 4),
        unparsable=unparsable,
        problems=AnswerProblems(empty=0, looping=0, truncated=0),
    )
    scores = Scores(model=MODEL, settings={}, judges={}, suites=[], task=task, duration_seconds={}, environment={})
    show_scores(scores, Path("out"))
    assert capsys.readouterr().out.splitlines()[0] == f"sums (numeric): accuracy 0.250 [0.046, 0.699] of 4{told}"


def test_scores_of_before_the_rules_are_read() -> None:
    """A task's scores without rule, version and count, as earlier releases wrote them, are by exact match."""
    problems = {"empty": 0, "looping": 0, "truncated": 0}
    accuracy = {"value": 0.25, "low": 0.046, "high": 0.699, "count": 4}
    old = {"name": "t", "prompt_set_hash": "x", "accuracy": accuracy, "problems": problems}
    assert TaskScores.model_validate(old).rule == "exact-match"
    assert TaskScores.model_validate(old).unparsable == 0
