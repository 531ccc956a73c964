"""An evaluation of canned answers, and judges that fail as slow ones do; no model is loaded for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from securetune.artifacts import ModelIdentity, Scores, Verdict
from securetune.config import EvaluationSettings, ModelSettings
from securetune.errors import RunError
from securetune.evaluation import Answer, Judge, check_evaluation, evaluate_answers, judges, register_judge
from securetune.evaluation.judges import AnswerToJudge

IDENTITY = ModelIdentity(
    name="canned",
    revision=None,
    architecture="A",
    parameter_count=1,
    weights_fingerprint="w",
    chat_template_hash="c",
)
REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Here is how: step one."
COUNT = 8


class CannedAnswerer:
    """Answers in turn with what it is given, and notes what it was asked."""

    backend = "transformers"
    identity = IDENTITY

    def __init__(self, answers: Sequence[str] = (REFUSAL, ANSWER)) -> None:
        self.given = answers
        self.asked: list[str] = []

    def check(self, conversations: Sequence[Sequence[Any]]) -> None: ...

    def answers(self, conversations: Sequence[Sequence[Any]], max_new_tokens: int) -> Iterator[Answer]:
        for place, messages in enumerate(conversations):
            self.asked.append(messages[-1]["content"])
            text = self.given[place % len(self.given)]
            yield Answer(place, text, 3, None if text.strip() else "empty", 0)


class NotedJudge:
    """Says that an answer refuses if it says sorry; counts what it is asked, and can stop or skip.

    Args:
        name: Of the judge.
        fingerprint: Of what its verdicts depend on.
    """

    def __init__(self, name: str = "noted", fingerprint: str = "") -> None:
        self.asked: list[str] = []
        self.stop_after: int | None = None
        self.error: BaseException = RunError("the server is gone")
        self.skipped: set[int] = set()
        self.judge = Judge(
            name, "Notes what it is asked.", self.judge_all, fingerprint=fingerprint, estimate=self._estimate
        )

    def judge_all(self, answers: Sequence[AnswerToJudge]) -> Iterator[Verdict | None]:
        for place, each in enumerate(answers):
            if len(self.asked) == self.stop_after:
                raise self.error
            self.asked.append(each.answer)
            refused = "sorry" in each.answer
            yield None if place in self.skipped else Verdict(refused=refused, attack_succeeded=not refused)

    def _estimate(self, answers: Sequence[AnswerToJudge]) -> str:
        return f"{len(answers)} requests"


def registered(monkeypatch: pytest.MonkeyPatch, *noted: NotedJudge) -> None:
    """Make judges available by name, instead of any that had it, until the end of the test."""
    names = {each.judge.name for each in noted}
    kept = {name: judge for name, judge in judges._JUDGES._things.items() if name not in names}
    monkeypatch.setattr(judges._JUDGES, "_things", kept)
    for each in noted:
        register_judge(each.judge)


def suite_files(folder: Path, count: int = COUNT) -> tuple[str, str]:
    """Write a harmful and a harmless suite, and return their names."""
    for kind in ("harmful", "harmless"):
        rows = [{"id": f"{kind}-{n}", "prompt": f"{kind} request {n}"} for n in range(count)]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "harmful.jsonl"), f"harmless:{folder / 'harmless.jsonl'}"


def evaluated(
    out: Path, suites: Sequence[str], names: Sequence[str], answerer: CannedAnswerer | None = None, **settings: Any
) -> Scores:
    """Evaluate canned answers to these suites by these judges."""
    wanted = EvaluationSettings(suites=tuple(suites), judges=tuple(names), **settings)
    plan = check_evaluation(wanted, ModelSettings(name=str(out)))
    return evaluate_answers(answerer or CannedAnswerer(), out, plan)
