"""What evaluation writes of each answer: a row of `responses.jsonl`, with what every judge says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from securetune.artifacts.estimates import Artifact
from securetune.artifacts.files import read_json_rows
from securetune.artifacts.provenance import sha256_json

_UNSAFE_IN_NAME = re.compile(r"[^\w.@+-]")


def responses_path(evaluation: Path, suite: str) -> Path:
    """Return where the answers of a suite or task are; a name with unusual characters cannot lead out of the folder.

    Args:
        evaluation: The folder that holds `scores.json`.
        suite: Name of the suite or task.
    """
    return evaluation / safe_name(suite) / "responses.jsonl"


def verdicts_path(answers: Path, judge: str) -> Path:
    """Return where the verdicts of a judge are kept while it judges.

    Args:
        answers: The folder that holds `responses.jsonl`.
        judge: Name of the judge.
    """
    return answers / "verdicts" / f"{safe_name(judge)}.jsonl"


def safe_name(name: str) -> str:
    """Return a name under which a file or folder can be made, and which cannot lead out of where it lies.

    Example:
        >>> safe_name("../a b")
        '_a_b'
    """
    return _UNSAFE_IN_NAME.sub("_", name).lstrip(".") or "_"


Compliance = Literal["full", "partial", "refusal"]
"""XSTest's classes of an answer: complies, declines in part, declines."""


class Verdict(Artifact):
    """What one judge says of one answer; what it does not tell is None.

    A judge that could not be read says nothing but `unparsable`. Such an answer is counted as unjudged, and is neither
    safe nor unsafe.

    Attributes:
        refused: The answer is a refusal.
        attack_succeeded: The answer does what the harmful request asked for. For a keyword judge this is "not refused"
            (the field's definition of ASR, which counts nonsense as success); an exact oracle is stricter. False for
            an answer to a harmless prompt.
        harmfulness: 1 (refusal) to 5 (full compliance), or None for a judge that does not rate.
        compliance: XSTest's three classes (arXiv 2308.01263), for a judge that tells them apart.
        coherent: Whether the answer is language that makes sense, for a judge that tells.
        unparsable: The first characters of what the judge itself said where no verdict could be read from it, or why
            it said nothing; otherwise None.
    """

    refused: bool | None = None
    attack_succeeded: bool | None = None
    harmfulness: int | None = Field(default=None, ge=1, le=5)
    compliance: Compliance | None = None
    coherent: bool | None = None
    unparsable: str | None = None

    @model_validator(mode="after")
    def _unparsable_says_nothing_else(self) -> Verdict:
        told = [self.refused, self.attack_succeeded, self.harmfulness, self.compliance, self.coherent]
        if self.unparsable is not None and any(value is not None for value in told):
            raise ValueError("a verdict with `unparsable` must say nothing else")
        return self


AnswerProblem = Literal["empty", "looping", "truncated"]


class Response(Artifact):
    """One row of `responses.jsonl`: a prompt, the model's answer, and what was found of it.

    Attributes:
        id: Identifies the prompt in its suite.
        prompt: Text of the last user turn, for readers and for `grep`.
        messages: The whole conversation, as the suite or task has it; it is put through the chat template.
        metadata: What the suite says of the prompt beside its messages, such as its category.
        response: The answer, without special tokens.
        new_tokens: Tokens that the model gave, without the end token.
        problem: `empty`, `looping` (it repeats itself), `truncated` (cut at the longest length allowed), or None.
        verdicts: Judge → verdict; empty for a task.
        expected: The right answer of a task, otherwise None.
        correct: Whether a task's answer is right, otherwise None.
        read_as: The option or number that was read out of a task's answer; None if none was, or none was looked for.
        prefill_characters: How many characters at the beginning of `response` were put there by an attack, and not by
            the model.
        shown: What was put through the chat template instead, where defenses at generation changed the messages, or
            None. Judges see `messages`.
    """

    id: str
    prompt: str
    messages: list[dict[str, str]]
    metadata: dict[str, Any]
    response: str
    new_tokens: int
    problem: AnswerProblem | None
    verdicts: dict[str, Verdict]
    expected: str | None = None
    correct: bool | None = None
    read_as: str | None = None
    prefill_characters: int = 0
    shown: list[dict[str, str]] | None = None

    @property
    def is_usable(self) -> bool:
        """Whether a judge can be relied on: the answer is neither empty nor a loop (arXiv 2606.03648)."""
        return self.problem not in ("empty", "looping")

    @property
    def request(self) -> str:
        """The request behind any attack, without case and spacing, by which answers to the same request are known."""
        behind = self.metadata.get("behavior")
        return " ".join((behind if isinstance(behind, str) else self.prompt).casefold().split())


def read_responses(path: Path) -> list[Response]:
    """Read a file of answers; a last row that was cut off by a kill is left out, as in one under way.

    Raises:
        ArtifactError: If a row is no answer, with its line. A file that is not there has no rows.
    """
    return read_json_rows(path, Response)


def answers_hash(responses: Iterable[Response]) -> str:
    """Hash prompts and answers, so that it is noticed if they were changed after they were scored."""
    return sha256_json([[each.id, each.messages, each.metadata, each.response, each.problem] for each in responses])
