"""What evaluation writes: `responses.jsonl` and `scores.json`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from securetune.artifacts.estimates import Artifact, MeanEstimate, ModelIdentity, RateEstimate
from securetune.artifacts.generation import ShownStep

_UNSAFE_IN_FOLDER = re.compile(r"[^\w.@+-]")


def responses_path(evaluation: Path, suite: str) -> Path:
    """Return where the answers of a suite or task are; a name with unusual characters cannot lead out of the folder.

    Args:
        evaluation: The folder that holds `scores.json`.
        suite: Name of the suite or task.
    """
    return evaluation / (_UNSAFE_IN_FOLDER.sub("_", suite).lstrip(".") or "_") / "responses.jsonl"


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


HIGHEST_RATING = 5
"""Full compliance. The harmfulness rate is the share of answers with this rating (arXiv 2310.03693, section 3)."""

AnswerProblem = Literal["empty", "looping", "truncated"]


class Response(Artifact):
    """One row of `responses.jsonl`: a prompt, the model's answer, and what was found of it.

    Attributes:
        id: Identifies the prompt in its suite.
        prompt: Text of the last user turn, for readers and for `grep`.
        messages: The whole conversation that was put through the chat template.
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


class AnswerProblems(Artifact):
    """How many answers of a suite were unusable; each answer counts once, under the first that holds."""

    empty: int
    looping: int
    truncated: int


class SuiteScores(Artifact):
    """The scores of one suite of prompts.

    Attributes:
        name: Registered name, or the name of the prompt file without its ending.
        kind: `harmful` prompts should be refused; `harmless` ones answered, and a refusal of one is an over-refusal.
        wrapper: Attack wrapper around every prompt (such as `role-play`), or None for plain requests.
        version: Which prompts a registered suite stands for, such as `advbench@protocol/1`; None for other files.
        prompt_set_hash: Hash of the prompts.
        count: Number of prompts.
        refusal_rate: Judge → share refused, for the judges that tell refusals. Every rate of a judge is over the
            answers that it judged; a judge that judged none has no rate.
        attack_success_rate: Judge → share of attacks that succeeded (ASR); empty for a harmless suite.
        harmfulness: Judge → mean rating from 1 to 5, for the judges that rate; empty for a harmless suite. What papers
            call "harmfulness score" is this mean in some (arXiv 2310.03693) and an ASR in others.
        harmfulness_rate: Judge → share of answers rated 5 (arXiv 2310.03693, section 3), for the judges that rate.
        partial_refusal_rate: Judge → share that declines in part, for the judges that tell; with `full_refusal_rate`
            XSTest's over-refusal on a harmless suite.
        full_refusal_rate: Judge → share that declines in full, for the same judges.
        incoherence_rate: Judge → share that makes no sense, for the judges that tell.
        unjudged: Judge → answers of which its verdict could not be read; judges that read all are left out.
        problems: Empty, looping and truncated answers.
        unusable_successes: Judge → how many of the attack successes are empty or looping answers, which no judge is
            reliable on.
    """

    name: str
    kind: Literal["harmful", "harmless"]
    wrapper: str | None
    version: str | None = None
    prompt_set_hash: str
    count: int = Field(ge=1)
    refusal_rate: dict[str, RateEstimate]
    attack_success_rate: dict[str, RateEstimate]
    harmfulness: dict[str, MeanEstimate]
    harmfulness_rate: dict[str, RateEstimate] = Field(default_factory=dict)
    partial_refusal_rate: dict[str, RateEstimate] = Field(default_factory=dict)
    full_refusal_rate: dict[str, RateEstimate] = Field(default_factory=dict)
    incoherence_rate: dict[str, RateEstimate] = Field(default_factory=dict)
    unjudged: dict[str, int] = Field(default_factory=dict)
    problems: AnswerProblems
    unusable_successes: dict[str, int]


class TaskScores(Artifact):
    """Task accuracy, with the same counts of unusable answers.

    Attributes:
        name: Registered name, or the name of the task file without its ending.
        prompt_set_hash: Hash of the prompts.
        rule: How answers were marked: `exact-match`, `choice` or `numeric`.
        version: Which prompts a registered task stands for, such as `gsm8k@test/1`; None for other files.
        accuracy: Share of right answers, over all of them.
        unparsable: Answers without an option or number that could be read; they count as wrong.
        problems: Empty, looping and truncated answers.
    """

    name: str
    prompt_set_hash: str
    rule: str = "exact-match"
    version: str | None = None
    accuracy: RateEstimate
    unparsable: int = Field(default=0, ge=0)
    problems: AnswerProblems


class UtilityResult(Artifact):
    """One number of lm-evaluation-harness.

    Attributes:
        task: Its task or group.
        metric: Its metric, such as `exact_match` or `acc`.
        filter: How the answer was extracted before, such as `strict-match`; `none` for most.
        value: What it says.
        standard_error: lm-eval's, or None where it gives none.
        count: Items behind it.
        higher_is_better: Or None where lm-eval does not say.
        task_version: lm-eval's version of the task, or None for most groups.
        lm_eval_version: Of the package.
    """

    task: str
    metric: str
    filter: str
    value: float
    standard_error: float | None
    count: int = Field(ge=0)
    higher_is_better: bool | None
    task_version: str | None
    lm_eval_version: str


class Scores(Artifact):
    """`scores.json`: the result of the evaluation of one model.

    Attributes:
        model: The evaluated model.
        settings: Resolved evaluation settings, with the suites and judges that were used.
        generation: Defenses at generation, through which the model was shown every prompt.
        judges: Judge → what it is: its source and its matching rule; the headline judge first.
        suites: One entry a suite.
        task: The task's scores, or None if no task was given.
        utility: What lm-eval found, or nothing if it was not asked.
        duration_seconds: Wall time of generating, by suite (0 where finished answers were found on disk).
        environment: Package versions and hardware.
    """

    format: Literal["securetune.scores/1"] = "securetune.scores/1"
    model: ModelIdentity
    settings: dict[str, Any]
    generation: list[ShownStep] = Field(default_factory=list)
    judges: dict[str, str]
    suites: list[SuiteScores]
    task: TaskScores | None
    utility: list[UtilityResult] = Field(default_factory=list)
    duration_seconds: dict[str, float]
    environment: dict[str, str]

    @property
    def asr_judge(self) -> str | None:
        """The judge behind the headline ASR: the first one named that tells whether attacks succeeded.

        Where only harmless prompts were judged, the first one that tells refusals.
        """
        return self._first_with("attack_success_rate") or self.refusal_judge

    @property
    def refusal_judge(self) -> str | None:
        """The judge behind the headline over-refusal: the first one named that tells refusals."""
        return self._first_with("refusal_rate")

    def _first_with(self, scores: str) -> str | None:
        return next((judge for judge in self.judges if any(judge in getattr(s, scores) for s in self.suites)), None)

    @property
    def harmfulness_judge(self) -> str | None:
        """The first judge that rates harmfulness, or None."""
        return next((judge for suite in self.suites for judge in suite.harmfulness), None)
