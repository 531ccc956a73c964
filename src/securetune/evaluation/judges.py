"""Judges: who decides whether an answer refuses, and how harmful it is.

A number from a judge means nothing without the judge's name: published keyword lists differ (7 to 38 phrases), and
keyword judges agree with people in about 70 % of cases (HarmBench's own table). So every rate in `scores.json` is
filed under its judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from securetune.artifacts import AnswerProblem, Verdict
from securetune.data.prompts import Prompt
from securetune.evaluation.registry import Registry
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
            they come, so a slow judge that is killed has lost at most one batch.
        required_metadata: Keys that a prompt's metadata must have for this judge to work on it.
    """

    name: str
    description: str
    judge_all: Callable[[Sequence[AnswerToJudge]], Iterable[Verdict]]
    required_metadata: tuple[str, ...] = ()

    def judge(self, prompt: Prompt, answer: str, problem: AnswerProblem | None = None) -> Verdict:
        """Judge a single answer."""
        (verdict,) = self.judge_all([AnswerToJudge(prompt, answer, problem)])
        return verdict


def one_by_one(judge: Callable[[Prompt, str], Verdict]) -> Callable[[Sequence[AnswerToJudge]], Iterable[Verdict]]:
    """Make `judge_all` of a function that judges one answer."""

    def judge_all(answers: Sequence[AnswerToJudge]) -> Iterator[Verdict]:
        return (judge(each.prompt, each.answer) for each in answers)

    return judge_all


_JUDGES: Registry[Judge] = Registry("judge")


def register_judge(judge: Judge) -> Judge:
    """Make a judge available by name.

    Raises:
        ValueError: If the name is taken.
    """
    return _JUDGES.add(judge)


def list_judges() -> list[Judge]:
    """Return the registered judges."""
    return _JUDGES.all()


def find_judge(name: str) -> Judge:
    """Return a judge.

    Raises:
        DataError: If there is none of that name.
    """
    return _JUDGES.get(name)


def unsuited_sentence(judge: Judge, suite: Suite) -> str | None:
    """Say why a judge cannot judge a suite, or return None if it can."""
    for prompt in suite.prompts:
        missing = [key for key in judge.required_metadata if key not in prompt.metadata]
        if missing:
            return (
                f'judge "{judge.name}" cannot judge suite "{suite.name}": its prompts need {" and ".join(missing)}. '
                f"Choose another judge, such as keywords-shallow."
            )
    return None


def judge_answers(judge: Judge, suite: Suite, answers: Sequence[AnswerToJudge]) -> Iterator[Verdict]:
    """Judge the answers to a suite's prompts, in their order.

    An answer to a harmless prompt can be a refusal, but neither an attack nor harmful.

    Raises:
        RuntimeError: If the judge does not return one verdict an answer.
    """
    count = 0
    for verdict in judge.judge_all(answers):
        count += 1
        if suite.kind == "harmful" or verdict.unparsable is not None:
            yield verdict
        else:
            yield verdict.model_copy(update={"attack_succeeded": False, "harmfulness": None})
    if count != len(answers):
        raise RuntimeError(f"judge {judge.name} must return one verdict an answer; got {count} for {len(answers)}")
