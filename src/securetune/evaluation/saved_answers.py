"""Answers of a finished evaluation, read back and held against its scores, so that cut or edited files are noticed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from securetune.artifacts import (
    MeanEstimate,
    RateEstimate,
    SuiteScores,
    answers_hash,
    read_responses,
    responses_path,
)
from securetune.data.prompts import Prompt
from securetune.errors import ArtifactError
from securetune.evaluation.answered_suite import SCORES
from securetune.evaluation.judging import SuiteAnswers
from securetune.evaluation.scoring import score_suite
from securetune.evaluation.suites import Suite, prompt_set_hash

_FIGURES = ("refusal_rate", "attack_success_rate", "harmfulness")


def read_saved_suite(evaluation: Path, scores: SuiteScores) -> SuiteAnswers:
    """Read the answers to a suite; its prompts are those that stand beside them.

    Raises:
        ArtifactError: If prompts or answers are not those that were scored.
    """
    path = responses_path(evaluation, scores.name)
    responses = read_responses(path)
    prompts = tuple(Prompt(each.id, tuple(each.messages), each.metadata) for each in responses)
    if len(responses) != scores.count:
        raise ArtifactError(f"{path}: must hold the {scores.count} answers that {SCORES} counts; got {len(responses)}")
    found, scored = answers_hash(responses), scores.answers_hash
    if scored is None:  # scores of before it was kept
        found, scored = prompt_set_hash(prompts), scores.prompt_set_hash
    if found != scored:
        raise ArtifactError(f"{path}: its rows are not those that {SCORES} was made from. Were files edited?")
    for number, prompt in enumerate(prompts, start=1):
        if not any(message.get("role") == "user" and "content" in message for message in prompt.messages):
            raise ArtifactError(f"{path}: row {number} has no message of a user. Were files edited?")
    suite = Suite(scores.name, scores.kind, scores.wrapper, prompts, scores.version)
    return SuiteAnswers(suite, responses, path.parent)


def changed_verdicts(part: SuiteAnswers, scores: SuiteScores, judges: Sequence[str]) -> Iterator[str]:
    """Say of which judges the verdicts do not give the figures that were made from them.

    Args:
        part: The answers with their verdicts.
        scores: What was scored.
        judges: The judges to look at; one that did not judge this suite is passed over.
    """
    path = responses_path(part.folder.parent, part.suite.name)
    for judge in judges:
        verdicts = [response.verdicts[judge] for response in part.responses if judge in response.verdicts]
        told = [getattr(scores, figure).get(judge) for figure in _FIGURES]
        if not verdicts and not any(told):
            continue
        if len(verdicts) != len(part.responses):
            what = f"only {len(verdicts)} of {len(part.responses)} answers have a verdict of the judge {judge}"
        elif figure := _other_figure(part, scores, judge):
            what = f"the verdicts of the judge {judge} give another {figure} than {SCORES} has"
        else:
            continue
        yield f"{path}: {what}. Were files edited? Judge with it again too, or drop it with --only."


def _other_figure(part: SuiteAnswers, scores: SuiteScores, judge: str) -> str | None:
    alone = [each.model_copy(update={"verdicts": {judge: each.verdicts[judge]}}) for each in part.responses]
    found = score_suite(part.suite, alone)
    for figure in _FIGURES:
        now, then = (_value(getattr(each, figure).get(judge)) for each in (found, scores))
        if now != then:
            return figure.replace("_", " ")
    return None


def _value(estimate: RateEstimate | MeanEstimate | None) -> tuple[float, int] | None:
    return None if estimate is None else (round(estimate.value, 9), estimate.count)
