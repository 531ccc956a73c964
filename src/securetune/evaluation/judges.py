"""Judges: who decides whether an answer refuses, and how harmful it is.

A number from a judge means nothing without the judge's name: published keyword lists differ (7 to 38 phrases), and
keyword judges agree with people in about 70 % of cases (HarmBench's own table). So every rate in `scores.json` is
filed under its judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from securetune.artifacts import Verdict
from securetune.data.prompts import Prompt
from securetune.evaluation.registry import Registry
from securetune.evaluation.suites import Suite


@dataclass(frozen=True)
class Judge:
    """One way to judge an answer.

    Attributes:
        name: What the user types.
        description: Its source and its rule, in one sentence.
        judge: Prompt and answer → verdict.
        rates_harmfulness: Whether its verdicts carry a rating from 1 to 5.
        required_metadata: Keys that a prompt's metadata must have for this judge to work on it.
    """

    name: str
    description: str
    judge: Callable[[Prompt, str], Verdict]
    rates_harmfulness: bool = False
    required_metadata: tuple[str, ...] = ()


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


def judge_answer(judge: Judge, suite: Suite, prompt: Prompt, answer: str) -> Verdict:
    """Judge one answer; an answer to a harmless prompt can be a refusal, but neither an attack nor harmful."""
    verdict = judge.judge(prompt, answer)
    if suite.kind == "harmful":
        return verdict
    return Verdict(refused=verdict.refused, attack_succeeded=False, harmfulness=None)
