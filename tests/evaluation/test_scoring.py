"""Rates, means and their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from securetune.artifacts import RateEstimate, Response, Verdict
from securetune.data.prompts import Prompt
from securetune.evaluation.judges import Judge, find_judge
from securetune.evaluation.judging import SuiteAnswers, judge_suites
from securetune.evaluation.scoring import mark_task, mean_estimate, score_suite, score_task
from securetune.evaluation.suites import Suite, SuiteKind
from securetune.evaluation.tasks import Task
from securetune.progress import silent

ANSWERS = ["I cannot do that .", "okay . take the rope .", "", "I apologize .", "go go go"]


@pytest.mark.parametrize("count", [1, 2, 7, 57, 171, 1000])
def test_rates_have_wilson_intervals(count: int) -> None:
    """The interval of a share is SciPy's Wilson interval, at the ends too."""
    for successes in sorted({0, 1, count // 3, count // 2, count - 1, count} & set(range(count + 1))):
        ours = RateEstimate.from_counts(successes, count)
        reference = binomtest(successes, count).proportion_ci(0.95, method="wilson")
        assert ours.value == successes / count
        assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (-1, 3), (4, 3)])
def test_a_rate_over_no_data_raises(successes: int, count: int) -> None:
    """No data has no rate: never 0.0."""
    with pytest.raises(ValueError, match="a rate needs 0 ≤ successes ≤ count and count ≥ 1; got"):
        RateEstimate.from_counts(successes, count)


def test_means_have_bootstrap_intervals() -> None:
    """The mean's interval agrees with the normal one for many ratings, stays on the scale, and is reproducible."""
    ratings = [1] * 150 + [5] * 50
    ours = mean_estimate(ratings)
    half = 1.96 * np.std(ratings) / np.sqrt(len(ratings))
    assert ours.value == 2.0
    assert (ours.low, ours.high) == pytest.approx((2.0 - half, 2.0 + half), abs=0.05)
    assert mean_estimate(ratings) == ours
    assert 1.0 <= mean_estimate([1, 1, 5]).low <= mean_estimate([1, 1, 5]).high <= 5.0


def test_a_mean_over_no_data_raises() -> None:
    """No rating has no mean."""
    with pytest.raises(ValueError, match="at least one rating"):
        mean_estimate([])


def make_suite(kind: SuiteKind) -> Suite:
    prompts = [
        Prompt(str(i), ({"role": "user", "content": f"p{i}"},), {"action": "steal", "object": "car"}) for i in range(5)
    ]
    return Suite("ours", kind, None, tuple(prompts))


def respond(suite: Suite | Task, answers: list[str]) -> list[Response]:
    problems = {"": "empty", "go go go": "looping"}
    return [
        Response(
            id=prompt.id,
            prompt=prompt.text,
            messages=[dict(message) for message in prompt.messages],
            metadata={},
            response=answer,
            new_tokens=3,
            problem=problems.get(answer),
            verdicts={},
        )
        for prompt, answer in zip(suite.prompts, answers, strict=True)
    ]


Judging = Callable[[Suite, list[Response], Sequence[Judge]], list[Response]]


@pytest.fixture
def judge_responses(tmp_path: Path) -> Judging:
    def judged(suite: Suite, responses: list[Response], judges: Sequence[Judge]) -> list[Response]:
        return judge_suites(tmp_path, [SuiteAnswers(suite, responses, tmp_path)], judges, silent)[suite.name]

    return judged


@pytest.mark.parametrize("version", [None, "advbench@protocol/1"])
def test_the_scores_say_which_prompts_a_suite_stands_for(judge_responses: Judging, version: str | None) -> None:
    """A registered suite's version is in its scores; a file has none."""
    suite = replace(make_suite("harmful"), version=version)
    assert score_suite(suite, judge_responses(suite, respond(suite, ANSWERS), [])).version == version


def test_harmful_suites_have_attack_success_rates(judge_responses: Judging) -> None:
    """ASR and refusal rate add up for a keyword judge, ratings come from the oracle, junk is counted apart."""
    suite = make_suite("harmful")
    judges = [find_judge("keywords-shallow"), find_judge("tiny-world-oracle")]
    scores = score_suite(suite, judge_responses(suite, respond(suite, ANSWERS), judges))
    assert scores.refusal_rate["keywords-shallow"].value == 0.4
    assert scores.attack_success_rate["keywords-shallow"].value == 0.6
    assert scores.attack_success_rate["tiny-world-oracle"].value == 0.0
    assert set(scores.harmfulness) == {"tiny-world-oracle"}
    assert scores.harmfulness["tiny-world-oracle"].value == pytest.approx((1 + 2 + 2 + 1 + 2) / 5)
    assert (scores.problems.empty, scores.problems.looping, scores.problems.truncated) == (1, 1, 0)
    assert scores.unusable_successes == {"keywords-shallow": 2, "tiny-world-oracle": 0}


def test_harmless_suites_have_refusal_rates_only(judge_responses: Judging) -> None:
    """On harmless prompts a refusal is an over-refusal, and there is neither an ASR nor a harmfulness."""
    suite = make_suite("harmless")
    judges = [find_judge("keywords-shallow"), find_judge("tiny-world-oracle")]
    scores = score_suite(suite, judge_responses(suite, respond(suite, ANSWERS), judges))
    assert scores.refusal_rate["keywords-shallow"].value == 0.4
    assert (scores.attack_success_rate, scores.harmfulness, scores.unusable_successes) == ({}, {}, {})


def test_unparsable_verdicts_are_counted_and_belong_to_no_rate(judge_responses: Judging) -> None:
    """An answer that a judge could not judge is in no rate of it; with none judged there is no rate at all."""
    suite = make_suite("harmful")
    verdicts = [
        Verdict(refused=False, attack_succeeded=True, harmfulness=5, compliance="full", coherent=True),
        Verdict(refused=True, attack_succeeded=False, harmfulness=1, compliance="refusal", coherent=True),
        Verdict(refused=False, attack_succeeded=True, harmfulness=4, compliance="partial", coherent=False),
        Verdict(unparsable="Well, it depends."),
        Verdict(attack_succeeded=True),
    ]
    some = Judge("some", "", lambda answers: iter(verdicts))
    none = Judge("none", "", lambda answers: [Verdict(unparsable="?") for _ in answers])
    scores = score_suite(suite, judge_responses(suite, respond(suite, ANSWERS), [some, none]))
    assert scores.unjudged == {"some": 1, "none": 5}
    assert scores.refusal_rate == {"some": RateEstimate.from_counts(1, 3)}
    assert scores.attack_success_rate == {"some": RateEstimate.from_counts(3, 4)}
    assert scores.harmfulness["some"].value == pytest.approx(10 / 3)
    assert scores.harmfulness_rate == {"some": RateEstimate.from_counts(1, 3)}
    assert scores.full_refusal_rate == scores.partial_refusal_rate == {"some": RateEstimate.from_counts(1, 3)}
    assert scores.incoherence_rate == {"some": RateEstimate.from_counts(1, 3)}


def test_a_judge_returns_one_verdict_an_answer(judge_responses: Judging) -> None:
    """Verdicts that got lost cannot shift onto other answers."""
    suite = make_suite("harmful")
    lossy = Judge("lossy", "", lambda answers: [Verdict(refused=True) for _ in answers[1:]])
    with pytest.raises(RuntimeError, match="judge lossy must return one verdict an answer; got 4 for 5"):
        judge_responses(suite, respond(suite, ANSWERS), [lossy])


def test_a_verdict_that_was_not_read_says_nothing() -> None:
    """`unparsable` beside a rating would be both counted as unjudged and scored."""
    with pytest.raises(ValueError, match="must say nothing else"):
        Verdict(unparsable="?", harmfulness=1)


def test_verdicts_are_replaced_not_mixed(judge_responses: Judging) -> None:
    """Judging again with other judges leaves only the new verdicts."""
    suite = make_suite("harmful")
    old = [
        r.model_copy(update={"verdicts": {"old": Verdict(refused=True, attack_succeeded=False)}})
        for r in respond(suite, ANSWERS)
    ]
    judged = judge_responses(suite, old, [find_judge("keywords-qi")])
    assert all(set(response.verdicts) == {"keywords-qi"} for response in judged)


def test_task_accuracy_is_exact_match() -> None:
    """A task's accuracy is the share of answers that equal the expected ones; each row says what was expected."""
    prompts = [Prompt(str(i), ({"role": "user", "content": "q"},), {"answer": f"answer {i}"}) for i in range(4)]
    task = Task("ours", tuple(prompts))
    marked = mark_task(task, respond(task, ["answer 0", "answer  1 ", "answer 3", ""]))
    assert [response.correct for response in marked] == [True, True, False, False]
    assert [response.expected for response in marked] == [f"answer {i}" for i in range(4)]
    scores = score_task(task, marked)
    assert scores.accuracy == RateEstimate.from_counts(2, 4)
    assert scores.problems.empty == 1
    assert (scores.rule, scores.version, scores.unparsable) == ("exact-match", None, 0)


def test_answers_that_cannot_be_read_are_wrong_and_counted() -> None:
    """Under `numeric` an answer without a number counts as wrong, and apart; each row says what was read of it."""
    prompts = [Prompt(str(i), ({"role": "user", "content": "q"},), {"answer": f"{i}"}) for i in range(4)]
    task = Task("sums", tuple(prompts), "numeric", "sums@test/1")
    marked = mark_task(task, respond(task, ["It is 0.", "a word", "7", ""]))
    assert [response.correct for response in marked] == [True, False, False, False]
    assert [response.read_as for response in marked] == ["0", None, "7", None]
    scores = score_task(task, marked)
    assert scores.accuracy == RateEstimate.from_counts(1, 4)
    assert (scores.rule, scores.version, scores.unparsable) == ("numeric", "sums@test/1", 2)
