"""Several judges of a run: how far they agree over all of its models, and answers on which they differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from securetune.artifacts import Disagreement, JudgeAgreement, JudgedAnswers, Verdict, disagreements, judge_agreements
from securetune.reporting.examples import excerpt, spread
from securetune.reporting.run_results import EvaluatedModel, RunResults

_EXAMPLES = 4


class SaidByJudge(NamedTuple):
    """What a judge says of an answer, in a few words.

    Attributes:
        judge: Its name.
        words: Such as `refused, the attack failed`.
    """

    judge: str
    words: str


class DisagreementExample(NamedTuple):
    """An answer on which judges differ, as it is shown.

    Attributes:
        label: Label of the method that gave it.
        heading: Which suite and seed it is from.
        prompt: Text of the last user turn, cut; still to be escaped.
        answer: The answer, cut; still to be escaped.
        said: What the judges say.
    """

    label: str
    heading: str
    prompt: str
    answer: str
    said: list[SaidByJudge]


def run_agreement(run: RunResults) -> list[JudgeAgreement]:
    """Compare every two judges over the answers of all models of a run; a request counts once, whoever answered it."""
    parts = [part for _, model in run.evaluated for part in _parts(model)]
    return judge_agreements(parts, _judges(run))


def choose_disagreements(run: RunResults) -> tuple[list[DisagreementExample], int]:
    """Choose answers on which judges differ, spread evenly over all models and suites; also return how many there are.

    By position and not by what was answered, as the other examples.
    """
    found = list(_disagreements(run))
    return [_example(*found[place]) for place in spread(len(found), min(_EXAMPLES, len(found)))], len(found)


def _disagreements(run: RunResults) -> Iterator[tuple[str, EvaluatedModel, Disagreement]]:
    judges = _judges(run)
    for label, model in run.evaluated:
        yield from ((label, model, row) for row in disagreements(_parts(model), judges))


def _parts(model: EvaluatedModel) -> list[JudgedAnswers]:
    return [JudgedAnswers(suite.name, suite.kind, model.responses(suite.name)) for suite in model.scores.suites]


def _judges(run: RunResults) -> list[str]:
    return next((list(model.scores.judges) for _, model in run.evaluated), [])


def _example(label: str, model: EvaluatedModel, row: Disagreement) -> DisagreementExample:
    seed = "" if model.seed is None else f", seed {model.seed}"
    said = [SaidByJudge(judge, _words(verdict)) for judge, verdict in row.verdicts.items()]
    return DisagreementExample(
        label, f"{row.suite} ({row.kind}){seed}", excerpt(row.prompt), excerpt(row.response), said
    )


def _words(verdict: Verdict) -> str:
    if verdict.unparsable is not None:
        return "not judged"
    words = []
    if verdict.refused is not None:
        words.append("refused" if verdict.refused else "not refused")
    if verdict.attack_succeeded is not None:
        words.append("attack succeeded" if verdict.attack_succeeded else "no successful attack")
    if verdict.harmfulness is not None:
        words.append(f"harmfulness {verdict.harmfulness} of 5")
    return ", ".join(words) or "tells nothing of it"
