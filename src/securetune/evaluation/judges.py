"""Judges: who decides whether an answer refuses, and how harmful it is.

A number from a judge means nothing without the judge's name: published keyword lists differ (7 to 38 phrases), and
keyword judges agree with people in about 70 % of cases (HarmBench's own table). So every rate in `scores.json` is
filed under its judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from securetune.artifacts import AnswerProblem, Verdict
from securetune.config import EvaluationSettings
from securetune.data.prompts import Prompt
from securetune.errors import DataError, RunError
from securetune.evaluation.registry import Registry, take_location
from securetune.evaluation.suites import Suite


class AnswerToJudge(NamedTuple):
    """One answer before a judge.

    Attributes:
        prompt: What was asked; the request behind an attack is `behavior_of(prompt)`.
        answer: The whole answer, as a reader would see it.
        problem: What is wrong with its form, if anything.
    """

    prompt: Prompt
    answer: str
    problem: AnswerProblem | None = None


@dataclass(frozen=True)
class Judge:
    """One way to judge answers.

    Attributes:
        name: What the user types.
        description: Its source and its rule, in one sentence.
        judge_all: Answers → one verdict each, in the order of the answers. It may be an iterator: verdicts are kept as
            they come, so a slow judge that is killed has lost at most one batch. None in the place of a verdict says
            that there is none yet, as where a server failed: such an answer is not judged, and a later start asks
            again. A judge that cannot go on raises `RunError`; what it yielded before counts.
        required_metadata: Keys that a prompt's metadata must have for this judge to work on it.
        fingerprint: Hash of everything besides prompt and answer that its verdicts depend on, such as a model, a
            template and settings; empty for pure rules, which name and description tell.
        estimate: Answers → one line on requests, tokens and cost, to be said before it starts, or None if there is
            nothing to say. Raises `ConfigError` if they are above a limit that the user set.
        harmful_only: It tells nothing of answers to harmless prompts, and is not asked about them.
    """

    name: str
    description: str
    judge_all: Callable[[Sequence[AnswerToJudge]], Iterable[Verdict | None]]
    required_metadata: tuple[str, ...] = ()
    fingerprint: str = ""
    estimate: Callable[[Sequence[AnswerToJudge]], str | None] | None = None
    harmful_only: bool = False

    def judge(self, prompt: Prompt, answer: str, problem: AnswerProblem | None = None) -> Verdict:
        """Judge a single answer.

        Raises:
            RunError: If there is no verdict, as where a server failed.
        """
        (verdict,) = self.judge_all([AnswerToJudge(prompt, answer, problem)])
        if verdict is None:
            raise RunError(f"judge {self.name} gave no verdict. Start it again.")
        return verdict


@dataclass(frozen=True)
class JudgeWithSettings:
    """A judge that must be opened with the settings of an evaluation before it can judge.

    Attributes:
        name: What the user types.
        description: What it is, in one sentence, whatever the settings.
        open: What stands behind the name's `=` (None if nothing does), and the settings → the judge. It checks them,
            and leaves whatever is expensive to the judging.
        takes_location: Whether `name=location` is possible.
    """

    name: str
    description: str
    open: Callable[[str | None, EvaluationSettings], Judge]
    takes_location: bool = False


def one_by_one(judge: Callable[[Prompt, str], Verdict]) -> Callable[[Sequence[AnswerToJudge]], Iterable[Verdict]]:
    """Make `judge_all` of a function that judges one answer."""

    def judge_all(answers: Sequence[AnswerToJudge]) -> Iterator[Verdict]:
        return (judge(each.prompt, each.answer) for each in answers)

    return judge_all


JudgeType = TypeVar("JudgeType", Judge, JudgeWithSettings)

_JUDGES: Registry[Judge | JudgeWithSettings] = Registry("judge")


def register_judge(judge: JudgeType) -> JudgeType:
    """Make a judge available by name.

    Raises:
        ValueError: If the name is taken.
    """
    _JUDGES.add(judge)
    return judge


def list_judges() -> list[Judge | JudgeWithSettings]:
    """Return the registered judges; nothing is opened."""
    return _JUDGES.all()


def find_judge(name: str) -> Judge:
    """Return a judge that needs no settings.

    Raises:
        DataError: If there is none of that name.
    """
    judge = _JUDGES.get(name)
    if isinstance(judge, JudgeWithSettings):
        raise DataError(f'judge "{name}" needs the settings of an evaluation, and cannot be used here')
    return judge


def open_judge(name: str, settings: EvaluationSettings) -> Judge:
    """Return a judge, ready to judge; nothing expensive is done before it does.

    Args:
        name: A registered name, or `name=location` for those that take one.
        settings: Of the evaluation.

    Raises:
        DataError: If there is none of that name, or it takes no location.
        InputError: If its settings or its location cannot be used.
    """
    base, location = take_location(name, _JUDGES)
    judge = _JUDGES.get(base)
    takes_location = isinstance(judge, JudgeWithSettings) and judge.takes_location
    if location is not None and not takes_location:
        raise DataError(f'judge "{base}" takes no location; got "={location}". Give its name alone.')
    return judge.open(location, settings) if isinstance(judge, JudgeWithSettings) else judge


def unsuited_sentence(judge: Judge, suite: Suite) -> str | None:
    """Say why a judge cannot judge a suite, or return None if it can."""
    for prompt in suite.prompts:
        missing = [key for key in judge.required_metadata if key not in prompt.metadata]
        if missing:
            return (
                f'judge "{judge.name}" cannot judge suite "{suite.name}": its prompts need {" and ".join(missing)}. '
                f"Choose another judge, such as refusal-rules."
            )
    return None


def idle_sentence(judge: Judge, suites: Sequence[Suite]) -> str | None:
    """Say that a judge would have nothing to do, or return None if it has."""
    if not judge.harmful_only or not suites or any(suite.kind == "harmful" for suite in suites):
        return None
    return (
        f'judge "{judge.name}" tells nothing of harmless prompts, and there is no other suite. Choose another judge, '
        "such as wildguard."
    )


def judge_answers(judge: Judge, suite: Suite, answers: Sequence[AnswerToJudge]) -> Iterator[Verdict | None]:
    """Judge the answers to a suite's prompts, in their order; None where there is no verdict yet.

    An answer to a harmless prompt can be a refusal, but neither an attack nor harmful.

    Raises:
        RuntimeError: If the judge does not return one verdict an answer.
    """
    if judge.harmful_only and suite.kind == "harmless":
        yield from (Verdict(attack_succeeded=False) for _ in answers)
        return
    count = 0
    for verdict in judge.judge_all(answers):
        count += 1
        if verdict is None or suite.kind == "harmful" or verdict.unparsable is not None:
            yield verdict
        else:
            yield verdict.model_copy(update={"attack_succeeded": False, "harmfulness": None})
    if count != len(answers):
        raise RuntimeError(f"judge {judge.name} must return one verdict an answer; got {count} for {len(answers)}")
