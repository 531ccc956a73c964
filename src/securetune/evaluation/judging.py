"""Judging: every verdict is on disk as it comes, so that none is lost, and none is asked for twice.

Beside the `responses.jsonl` of a suite lies a folder `verdicts` with one file a judge. Each row says which judge it is
from (a hash of all that its verdicts depend on) and which answer it is about (a hash of what the judge is shown). A
judge is asked about the answers that have no such row; one that was changed is asked about all. The files stay: they
make it cheap to judge again with one judge more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from securetune.artifacts import (
    Artifact,
    Response,
    Verdict,
    append_json_line,
    read_json_rows,
    sha256_json,
    verdicts_path,
)
from securetune.errors import ArtifactError, ProblemList, RunError
from securetune.evaluation.judges import AnswerToJudge, Judge, judge_answers
from securetune.evaluation.suites import Suite, SuiteKind
from securetune.progress import ProgressCallback
from securetune.untrusted_text import without_control_characters

_PATIENCE_SECONDS = 1.0
"""How long a judge works on a suite before its progress is told: rules are finished by then."""

_LAST = 8
"""Answers at the end of a suite that are all without a verdict where a judge has given up: a server that is gone leaves
them all, and one that refuses single answers does not."""


class KeptVerdict(Artifact):
    """A row of `verdicts/<judge>.jsonl`.

    Attributes:
        judge: Key of the judge.
        answer: Key of the answer.
        verdict: What the judge says of it.
    """

    judge: str
    answer: str
    verdict: Verdict


class SuiteAnswers(NamedTuple):
    """The answers to a suite, to be judged.

    Attributes:
        suite: The suite.
        responses: One a prompt, in their order.
        folder: Where they lie, and where verdicts are kept.
    """

    suite: Suite
    responses: Sequence[Response]
    folder: Path

    @property
    def to_judge(self) -> list[AnswerToJudge]:
        """The answers as judges are shown them."""
        return [
            AnswerToJudge(prompt, response.response, response.problem)
            for prompt, response in zip(self.suite.prompts, self.responses, strict=True)
        ]


class VerdictFile:
    """The verdicts of one judge on the answers to one suite, on disk.

    Args:
        folder: Where the answers lie.
        judge: The judge.

    Raises:
        ArtifactError: If the file is spoiled.
    """

    def __init__(self, folder: Path, judge: Judge) -> None:
        self._path = verdicts_path(folder, judge.name)
        self._judge = judge_key(judge)
        rows = read_json_rows(self._path, KeptVerdict)
        self._kept = {row.answer: row.verdict for row in rows if row.judge == self._judge}

    def get(self, answer: str) -> Verdict | None:
        """Return the verdict on an answer, or None if there is none yet."""
        return self._kept.get(answer)

    def keep(self, answer: str, verdict: Verdict) -> None:
        """Put a verdict on disk."""
        if verdict.unparsable is not None:
            # A judge may quote half of a character, which can be written to no file.
            quoted = verdict.unparsable.encode("utf-8", "replace").decode("utf-8")
            verdict = verdict.model_copy(update={"unparsable": quoted})
        append_json_line(self._path, KeptVerdict(judge=self._judge, answer=answer, verdict=verdict))
        self._kept[answer] = verdict


def judge_key(judge: Judge) -> str:
    """Return a hash of what a judge's verdicts depend on beside the answers; rules are told by name and description."""
    return judge.fingerprint or sha256_json([judge.name, judge.description])


def answer_key(kind: SuiteKind, answer: AnswerToJudge) -> str:
    """Return a hash of everything that a judge is shown of an answer, and of what it may say of one of this kind."""
    messages = [dict(message) for message in answer.prompt.messages]
    return sha256_json([kind, messages, dict(answer.prompt.metadata), answer.answer, answer.problem])


def check_verdict_files(folders: Sequence[Path], judges: Sequence[Judge]) -> None:
    """Read the kept verdicts of every judge, before anything expensive is done.

    Raises:
        ArtifactError: With every file that is spoiled.
    """
    problems = ProblemList()
    for folder in folders:
        for judge in judges:
            with problems.collect():
                VerdictFile(folder, judge)
    problems.raise_if_any(ArtifactError)


def judge_suites(
    out: Path, parts: Sequence[SuiteAnswers], judges: Sequence[Judge], show: ProgressCallback
) -> dict[str, list[Response]]:
    """Ask each judge about the answers of which it has not told yet, and return all answers with all verdicts on them.

    What a judge costs is said on stderr before it begins, where it can tell.

    Args:
        out: The evaluation, for the message.
        parts: The answers.
        judges: Each judges all of them; those that are free of charge lose nothing where another one fails.
        show: Told of a judge that takes its time.

    Returns:
        Suite → its answers; verdicts of other judges that were on them are gone.

    Raises:
        InputError: If a judge would cost more than its settings allow.
        RunError: If verdicts are missing in the end. Those that came are kept.
        RuntimeError: If a judge does not return one verdict an answer.
    """
    waiting = {judge.name: [_waiting(judge, part) for part in parts] for judge in judges}
    for judge in judges:  # all of them before the first one begins: an estimate can be above a limit
        _say_what_it_costs(judge, waiting[judge.name])
    asked = {judge.name: _ask(judge, waiting[judge.name], show) for judge in judges}
    _require_all(out, asked)
    judged: dict[str, list[Response]] = {}
    for part, answers in enumerate(parts):
        verdicts = {name: found.verdicts[part] for name, found in asked.items()}
        judged[answers.suite.name] = [
            response.model_copy(update={"verdicts": {name: listed[place] for name, listed in verdicts.items()}})
            for place, response in enumerate(answers.responses)
        ]
    return judged


class _Asked(NamedTuple):
    """What became of asking a judge.

    Attributes:
        verdicts: For each suite one an answer; None where there is none.
        reason: Why the last one is missing, if any is.
    """

    verdicts: list[list[Verdict | None]]
    reason: str | None

    @property
    def all(self) -> list[Verdict | None]:
        return [verdict for listed in self.verdicts for verdict in listed]


class _Waiting(NamedTuple):
    """The answers to a suite that a judge has not told of yet."""

    part: SuiteAnswers
    file: VerdictFile
    keys: list[str]
    answers: list[AnswerToJudge]

    @property
    def verdicts(self) -> list[Verdict | None]:
        """What is known by now of all answers to the suite."""
        return [self.file.get(answer_key(self.part.suite.kind, answer)) for answer in self.part.to_judge]


def _ask(judge: Judge, waiting: Sequence[_Waiting], show: ProgressCallback) -> _Asked:
    reason = None
    for each in waiting:
        try:
            _judge(judge, each, show)
        except RunError as error:
            reason = str(error).rstrip(".")
            if len(each.answers) > 1 and not any(each.file.get(key) for key in each.keys[-_LAST:]):
                break  # it has given up, and would do so on the next suite, after as long a wait
    return _Asked([each.verdicts for each in waiting], reason)


def _waiting(judge: Judge, part: SuiteAnswers) -> _Waiting:
    file = VerdictFile(part.folder, judge)
    keyed = {answer_key(part.suite.kind, answer): answer for answer in part.to_judge}
    left = {key: answer for key, answer in keyed.items() if file.get(key) is None}
    return _Waiting(part, file, list(left), list(left.values()))


def _say_what_it_costs(judge: Judge, waiting: Sequence[_Waiting]) -> None:
    kinds = ("harmful",) if judge.harmful_only else ("harmful", "harmless")
    answers = [answer for each in waiting if each.part.suite.kind in kinds for answer in each.answers]
    estimate = judge.estimate(answers) if judge.estimate is not None and answers else None
    if estimate:
        line = without_control_characters(f"judge {judge.name}: {estimate}")
        print(" ".join(line.split()), file=sys.stderr, flush=True)


def _judge(judge: Judge, waiting: _Waiting, show: ProgressCallback) -> None:
    if not waiting.answers:
        return
    began, total = time.monotonic(), len(waiting.part.responses)
    known = total - len(waiting.answers)
    for place, verdict in enumerate(judge_answers(judge, waiting.part.suite, waiting.answers)):
        if verdict is not None and place < len(waiting.keys):  # one too many is told at the end, by `judge_answers`
            waiting.file.keep(waiting.keys[place], verdict)
        if time.monotonic() - began > _PATIENCE_SECONDS:
            show(f"{waiting.part.suite.name} by {judge.name}", known + place + 1, total)


def _require_all(out: Path, asked: Mapping[str, _Asked]) -> None:
    """Refuse to go on without all verdicts: an answer that was not judged is neither safe nor unsafe.

    Raises:
        RunError: If any is missing.
    """
    missing = {name: found.all.count(None) for name, found in asked.items()}
    count, total = sum(missing.values()), sum(len(found.all) for found in asked.values())
    if not count:
        return
    reasons = [found.reason for found in asked.values() if found.reason] or ["the judge gave none"]
    by_judge = ", ".join(f"{number} by {name}" for name, number in missing.items() if number)
    raise RunError(
        f"{out}: {count} of {total} verdicts are missing ({by_judge}), the last because: {reasons[-1]}. Nothing was "
        f"scored. The other {total - count} verdicts are kept: the same command goes on with those that are missing."
    )
