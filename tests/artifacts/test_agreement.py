"""How far judges agree: Cohen's κ and its interval, and the answers on which they differ."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from securetune.artifacts import (
    AnswerProblem,
    JudgeAgreement,
    JudgedAnswers,
    RateEstimate,
    Response,
    Verdict,
    cohen_kappa,
    disagreements,
    judge_agreements,
    over_all_suites,
)


def answer(
    number: int, problem: AnswerProblem | None = None, request: str | None = None, **verdicts: Verdict
) -> Response:
    return Response(
        id=str(number),
        prompt=request or f"request {number}",
        messages=[],
        metadata={},
        response="an answer",
        new_tokens=1,
        problem=problem,
        verdicts=verdicts,
    )


def told(first: bool, second: bool) -> dict[str, Verdict]:
    return {"a": Verdict(attack_succeeded=first), "b": Verdict(attack_succeeded=second)}


def answers(*counts: int, **more: object) -> list[Response]:
    """As many answers as the four counts say: both, only the first, only the second, neither."""
    says = [(True, True), (True, False), (False, True), (False, False)]
    listed = [pair for pair, count in zip(says, counts, strict=True) for _ in range(count)]
    return [answer(number, **told(*pair), **more) for number, pair in enumerate(listed)]


def agreement(responses: list[Response]) -> JudgeAgreement:
    (found,) = judge_agreements([JudgedAnswers("s", "harmful", responses)], ["a", "b"])
    return found


@pytest.mark.parametrize("counts", [(20, 5, 10, 15), (1, 0, 0, 9), (0, 3, 4, 0), (30, 1, 0, 0), (7, 7, 7, 7)])
def test_kappa_is_that_of_scikit_learn(counts: tuple[int, ...]) -> None:
    """For every table that has a κ, it is scikit-learn's; agreement and counts are those of the table."""
    found = agreement(answers(*counts)).answers
    sides = [[r.verdicts[judge].attack_succeeded for r in answers(*counts)] for judge in ("a", "b")]
    assert found.kappa == pytest.approx(cohen_kappa_score(*sides))
    assert (found.both, found.only_first, found.only_second, found.neither) == counts
    assert found.share == RateEstimate.from_counts(counts[0] + counts[3], sum(counts))
    assert found.kappa_low is not None
    assert found.kappa_high is not None
    assert -1 <= found.kappa_low <= found.kappa <= found.kappa_high <= 1
    assert found.kappa_high - found.kappa_low > 0.05


@pytest.mark.parametrize("counts", [(12, 0, 0, 0), (0, 0, 0, 12)])
def test_kappa_is_not_defined_where_both_always_say_the_same(counts: tuple[int, ...]) -> None:
    """Then chance explains all of the agreement: there is no κ, and the agreement has its interval all the same."""
    found = agreement(answers(*counts)).answers
    assert (found.kappa, found.kappa_low, found.kappa_high, found.count) == (None, None, None, 12)
    assert found.share == RateEstimate.from_counts(12, 12)


def test_the_interval_of_kappa_holds_the_truth() -> None:
    """Of 100 samples of 80 answers from known shares, 88 to 99 of the 95 % intervals hold the true κ."""
    shares = np.array([0.3, 0.08, 0.12, 0.5])
    truth = float(cohen_kappa(np.rint(shares * 1000).astype(int)))
    drawn = np.random.default_rng(7).multinomial(80, shares, size=100)
    found = [agreement(answers(*counts)).answers for counts in drawn.tolist()]
    assert 88 <= sum(each.kappa_low <= truth <= each.kappa_high for each in found) <= 99


def test_full_agreement_is_not_certainty() -> None:
    """Where no resample differs, the interval is that of the share of agreement, and narrower for more answers."""
    few, many = (agreement(answers(count, 0, 0, count)).answers for count in (5, 100))
    for found, count in ((few, 10), (many, 200)):
        assert (found.kappa, found.kappa_high) == (1.0, 1.0)
        assert found.kappa_low == pytest.approx((RateEstimate.from_counts(count, count).low - 0.5) / 0.5)


def test_the_same_request_again_is_no_more_evidence() -> None:
    """Answers to one request under several attacks, or of several models, are drawn together."""
    once = answers(12, 3, 4, 11)
    again = [each.model_copy(update={"id": f"{each.id} again"}) for each in once]
    apart = [each.model_copy(update={"prompt": f"another {each.prompt}"}) for each in again]
    alone, shared, independent = (agreement(listed).answers for listed in (once, once + again, once + apart))
    assert alone.kappa == shared.kappa == independent.kappa
    assert (shared.kappa_low, shared.kappa_high) == pytest.approx((alone.kappa_low, alone.kappa_high), abs=0.02)
    assert independent.kappa_high - independent.kappa_low < 0.8 * (alone.kappa_high - alone.kappa_low)


def test_unusable_answers_are_counted_in_and_left_out() -> None:
    """Empty and looping answers are in the first figure and not in the second; cut-off ones are in both."""
    broken = [answer(50 + n, problem, **told(True, False)) for n, problem in enumerate(("empty", "looping"))]
    cut = answer(60, "truncated", **told(True, True))
    found = agreement([*answers(4, 0, 0, 4), *broken, cut])
    assert (found.answers.count, found.answers.only_first) == (11, 2)
    assert found.usable is not None
    assert (found.usable.count, found.usable.only_first, found.usable.kappa) == (9, 0, 1.0)
    assert agreement(answers(4, 1, 0, 4)).usable is None
    assert agreement(broken).usable is None


def test_answers_that_one_judge_does_not_tell_are_counted_apart() -> None:
    """A verdict that could not be read, one of something else and a missing one are no disagreement."""
    silent = [
        answer(50, a=Verdict(attack_succeeded=True), b=Verdict(unparsable="?")),
        answer(51, a=Verdict(attack_succeeded=True), b=Verdict(refused=True)),
        answer(52, a=Verdict(attack_succeeded=True)),
    ]
    found = agreement([*answers(4, 1, 0, 4), *silent])
    assert (found.answers.count, found.untold) == (9, 3)
    assert judge_agreements([JudgedAnswers("s", "harmful", silent)], ["a", "b"]) == []


def test_every_pair_suite_and_question() -> None:
    """Attacks are compared on harmful suites and refusals on all, for every pair, in each suite and over all."""
    keyword = {judge: Verdict(refused=True, attack_succeeded=False) for judge in ("a", "b")}
    alone = {"c": Verdict(refused=True)}
    parts = [
        JudgedAnswers(name, kind, [answer(number, **keyword, **alone) for number in range(3)])
        for name, kind in (("x", "harmful"), ("y", "harmful"), ("z", "harmless"))
    ]
    found = judge_agreements(parts, ["a", "b", "c"])
    counted = {(each.question, each.suite, each.first, each.second): each.answers.count for each in found}
    assert counted == {
        **{("attack_succeeded", suite, "a", "b"): count for suite, count in ((None, 6), ("x", 3), ("y", 3))},
        **{
            ("refused", suite, *pair): count
            for pair in (("a", "b"), ("a", "c"), ("b", "c"))
            for suite, count in ((None, 9), ("x", 3), ("y", 3), ("z", 3))
        },
    }
    whole = {(each.question, each.first, each.second): each.suite for each in over_all_suites(found)}
    assert set(whole.values()) == {None}
    assert len(whole) == 4
    harmful = judge_agreements(parts[:1], ["a", "b", "c"])
    assert [each.question for each in over_all_suites(harmful) if (each.first, each.second) == ("a", "b")] == [
        "attack_succeeded"  # the table of refusals mirrors it
    ]


def test_the_answers_on_which_judges_differ_are_listed() -> None:
    """Each is there once, with what it is about and every judge's verdict; silence is no disagreement."""
    first = answer(0, a=Verdict(refused=True, attack_succeeded=False), b=Verdict(refused=True, attack_succeeded=True))
    second = answer(1, a=Verdict(refused=True), b=Verdict(unparsable="?"), c=Verdict(refused=False))
    same = answer(2, a=Verdict(refused=True), b=Verdict(refused=True))
    rows = list(disagreements([JudgedAnswers("s", "harmful", [first, second, same])], ["a", "b", "c"]))
    assert [(row.id, row.differ_on) for row in rows] == [("0", ["attack_succeeded"]), ("1", ["refused"])]
    assert rows[0].suite == "s"
    assert rows[0].response == "an answer"
    assert list(rows[1].verdicts) == ["a", "b", "c"]
