"""How far judges agree on the same answers: raw agreement, Cohen's κ, and the answers on which they differ.

A rate is filed under its judge, because judges differ; how much they do on these very answers is measured here. Judges
are unreliable on empty and looping answers (arXiv 2606.03648), and agree or differ on them for no reason, so where
there are such answers every figure is given without them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from securetune.artifacts.estimates import Artifact, Interval, RateEstimate, wilson_interval
from securetune.artifacts.responses import AnswerProblem, Response, Verdict

Question = Literal["attack_succeeded", "refused"]
"""What judges are compared on: whether attacks succeeded, on harmful suites; whether answers refuse, on all."""

QUESTIONS: tuple[Question, ...] = ("attack_succeeded", "refused")

RESAMPLES = 2000
"""The bounds then vary by about 2 % of the interval's width from one seed of the resampling to the next."""

_NO_WIDTH = 1e-9


class AgreementEstimate(Artifact):
    """What two judges say of the same answers, as a table of two by two, and what follows from it.

    Attributes:
        both: Answers of which both say yes (the attack succeeded; the answer refuses).
        only_first: Only the first judge does.
        only_second: Only the second does.
        neither: Both say no.
        share: Share of the answers on which they say the same, with Wilson's 95 % interval.
        kappa: Cohen's κ (Educational and Psychological Measurement 20, 1960): of the agreement that chance leaves to be
            had, given how often each judge says yes, the share that is there. 1 is full agreement, 0 what chance gives.
            None where both judges say one and the same of every answer: chance then explains it all, and κ is 0/0.
        kappa_low: Lower bound of its 95 % interval, or None: percentile bootstrap over requests, so that one request
            under several attacks counts as one. Where no resample differs, which a bootstrap takes for certainty, it is
            that of the share of agreement instead, with each judge's share of yes held fixed.
        kappa_high: Upper bound.
    """

    both: int = Field(ge=0)
    only_first: int = Field(ge=0)
    only_second: int = Field(ge=0)
    neither: int = Field(ge=0)
    share: RateEstimate
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None

    @property
    def count(self) -> int:
        """Answers of which both judges tell."""
        return self.both + self.only_first + self.only_second + self.neither


class JudgeAgreement(Artifact):
    """How far two judges agree on one question.

    Attributes:
        question: Which.
        suite: Name of the suite, or None for all suites of which both judges tell, taken together.
        first: One judge.
        second: The other.
        answers: Over all answers of which both tell, whatever is wrong with their form.
        usable: The same without the empty and the looping ones; None where there are no such answers, or no others.
        untold: Answers of which one of the two tells nothing, because its verdict could not be read or is missing.
    """

    question: Question
    suite: str | None
    first: str
    second: str
    answers: AgreementEstimate
    usable: AgreementEstimate | None
    untold: int = Field(ge=0)


class Disagreement(Artifact):
    """A row of `disagreements.jsonl`: an answer on which judges differ, for a person to look at.

    Attributes:
        suite: Its suite.
        kind: Of the suite.
        id: Of the prompt in the suite.
        differ_on: The questions on which not all judges who tell say the same.
        prompt: Text of the last user turn.
        response: The answer.
        problem: What is wrong with its form, if anything.
        verdicts: Judge → verdict, of all judges.
    """

    suite: str
    kind: Literal["harmful", "harmless"]
    id: str
    differ_on: list[Question]
    prompt: str
    response: str
    problem: AnswerProblem | None
    verdicts: dict[str, Verdict]


class JudgedAnswers(NamedTuple):
    """Judged answers to a suite.

    Attributes:
        suite: Its name. Parts of the same name, such as the answers of several models, are taken together.
        kind: Of the suite.
        responses: The answers.
    """

    suite: str
    kind: Literal["harmful", "harmless"]
    responses: Sequence[Response]


class _Pair(NamedTuple):
    """What two judges say of one answer."""

    request: str
    is_usable: bool
    first: bool
    second: bool


def judge_agreements(parts: Sequence[JudgedAnswers], judges: Sequence[str]) -> list[JudgeAgreement]:
    """Compare every pair of judges: all suites together first, then each one. Where only one tells there is nothing."""
    found = []
    for question in QUESTIONS:
        asked = [part for part in parts if part.kind == "harmful" or question == "refused"]
        for first, second in combinations(judges, 2):
            found += [
                _agreement(question, suite, first, second, pairs)
                for suite, pairs in _pairs_by_suite(asked, question, first, second).items()
            ]
    return found


def _pairs_by_suite(
    parts: Sequence[JudgedAnswers], question: Question, first: str, second: str
) -> dict[str | None, list[_Pair | None]]:
    """Return what two judges say of the answers to each suite of which both tell, under None that of all of them.

    An answer of which one of them tells nothing is None.
    """
    by_suite: dict[str, list[_Pair | None]] = {}
    for part in parts:
        pairs = [_pair(response, question, first, second) for response in part.responses]
        by_suite.setdefault(part.suite, []).extend(pairs)
    told = {suite: pairs for suite, pairs in by_suite.items() if any(pairs)}
    found: dict[str | None, list[_Pair | None]] = {}
    if len(told) > 1:
        found[None] = [pair for pairs in told.values() for pair in pairs]
    found.update(told)
    return found


def over_all_suites(agreement: Sequence[JudgeAgreement]) -> list[JudgeAgreement]:
    """Return for each pair and question the figure over all suites, or over the only one.

    Of two judges to whom whatever is no refusal is a success, as keyword judges are, the table of refusals on harmful
    suites mirrors that of attacks, and is left out.
    """
    found: dict[tuple[str, str, Question], JudgeAgreement] = {}
    for each in agreement:  # the one over all suites comes before those of single ones
        found.setdefault((each.first, each.second, each.question), each)
    return [each for each in found.values() if not _mirrors(each, found.get((each.first, each.second, QUESTIONS[0])))]


def _mirrors(each: JudgeAgreement, attacks: JudgeAgreement | None) -> bool:
    if each.question == QUESTIONS[0] or attacks is None:
        return False
    tables = [(e.both, e.only_first, e.only_second, e.neither) for e in (each.answers, attacks.answers)]
    return tables[0] == tables[1][::-1]


def disagreements(parts: Sequence[JudgedAnswers], judges: Sequence[str]) -> Iterator[Disagreement]:
    """Yield the answers on which the judges that tell do not all say the same, in the order of the suites."""
    for part in parts:
        for response in part.responses:
            verdicts = {judge: response.verdicts[judge] for judge in judges if judge in response.verdicts}
            differ_on = [question for question in QUESTIONS if _differ(verdicts.values(), question)]
            if differ_on:
                yield Disagreement(
                    suite=part.suite,
                    kind=part.kind,
                    id=response.id,
                    differ_on=differ_on,
                    prompt=response.prompt,
                    response=response.response,
                    problem=response.problem,
                    verdicts=verdicts,
                )


def _differ(verdicts: Iterable[Verdict], question: Question) -> bool:
    told = {getattr(verdict, question) for verdict in verdicts} - {None}
    return len(told) > 1


def _pair(response: Response, question: Question, first: str, second: str) -> _Pair | None:
    here, there = (getattr(response.verdicts.get(judge), question, None) for judge in (first, second))
    return None if here is None or there is None else _Pair(response.request, response.is_usable, here, there)


def _agreement(
    question: Question, suite: str | None, first: str, second: str, pairs: Sequence[_Pair | None]
) -> JudgeAgreement:
    told = [pair for pair in pairs if pair is not None]
    usable = [pair for pair in told if pair.is_usable]
    return JudgeAgreement(
        question=question,
        suite=suite,
        first=first,
        second=second,
        answers=_estimate(told),
        usable=_estimate(usable) if 0 < len(usable) < len(told) else None,
        untold=len(pairs) - len(told),
    )


def _estimate(pairs: Sequence[_Pair]) -> AgreementEstimate:
    tables: dict[str, list[int]] = {}
    for pair in pairs:
        tables.setdefault(pair.request, [0, 0, 0, 0])[2 * (not pair.first) + (not pair.second)] += 1
    by_request = np.array(list(tables.values()))
    both, only_first, only_second, neither = (int(count) for count in by_request.sum(axis=0))
    kappa = float(cohen_kappa(by_request.sum(axis=0)))
    interval = None if np.isnan(kappa) else _kappa_interval(by_request)
    return AgreementEstimate(
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=neither,
        share=RateEstimate.from_counts(both + neither, len(pairs)),
        kappa=None if interval is None else kappa,
        kappa_low=None if interval is None else interval.low,
        kappa_high=None if interval is None else interval.high,
    )


def cohen_kappa(table: Int[np.ndarray, "*tables 4"]) -> Float[np.ndarray, "*tables"]:
    """Return Cohen's κ of tables of two by two: both, only the first, only the second, neither.

    With counts a, b, c, d it is 2(ad − bc) / ((a + b)(b + d) + (a + c)(c + d)), which is (p_o − p_e) / (1 − p_e) with
    all fractions cleared. NaN where both judges say one and the same of every answer.

    Example:
        >>> float(cohen_kappa(np.array([20, 5, 10, 15])))
        0.4
    """
    a, b, c, d = np.moveaxis(table.astype(np.float64), -1, 0)
    left_to_chance = (a + b) * (b + d) + (a + c) * (c + d)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * (a * d - b * c) / left_to_chance)


def _kappa_interval(by_request: Int[np.ndarray, "request 4"]) -> Interval:
    """Return κ's interval, over requests."""
    # Requests with the same table can be drawn together, so that memory does not grow with their number.
    kinds, counts = np.unique(by_request, axis=0, return_counts=True)
    requests = len(by_request)
    drawn = np.random.default_rng(0).multinomial(requests, counts / requests, size=RESAMPLES)
    kappas = cohen_kappa(drawn @ kinds)
    kappas = kappas[~np.isnan(kappas)]
    low, high = np.percentile(kappas, [2.5, 97.5]) if len(kappas) else (0.0, 0.0)
    if high - low > _NO_WIDTH:
        return Interval(float(low), float(high))
    return _interval_of_share(by_request.sum(axis=0), requests)


def _interval_of_share(table: Int[np.ndarray, " 4"], requests: int) -> Interval:
    """Turn Wilson's bounds of the share of agreement into bounds of κ: (p_o − p_e) / (1 − p_e) with p_e as observed."""
    both, only_first, only_second, neither = (float(count) / table.sum() for count in table)
    yes = both + only_first, both + only_second
    by_chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    share = wilson_interval((both + neither) * requests, float(requests))
    return Interval(*(max(-1.0, (bound - by_chance) / (1 - by_chance)) for bound in share))
