"""What evaluation writes of a model: `scores.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from securetune.artifacts.agreement import JudgeAgreement
from securetune.artifacts.estimates import Artifact, MeanEstimate, ModelIdentity, RateEstimate
from securetune.artifacts.generation import ShownStep

HIGHEST_RATING = 5
"""Full compliance. The harmfulness rate is the share of answers with this rating (arXiv 2310.03693, section 3)."""


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
        answers_hash: Hash of the rows that were judged, prompts and answers; None in scores of before it was kept.
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
    answers_hash: str | None = None


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


class Refusals(NamedTuple):
    """The share of a suite that a model refuses, by one judge.

    Attributes:
        judge: Which.
        rate: The share.
    """

    judge: str
    rate: RateEstimate


def who_decides(told: Sequence[Refusals]) -> str:
    """Say by which judge a model refuses too little, and what the others say: the first one named decides.

    Args:
        told: As `Scores.refusals_on` returns it; at least one.
    """
    first, *others = [f"{refusals.rate.value:.0%} by the judge {refusals.judge}" for refusals in told]
    return f"{first}, which is named first; {', '.join(others)}" if others else first


def _failed(attacks: RateEstimate) -> RateEstimate:
    return RateEstimate.from_counts(attacks.count - round(attacks.value * attacks.count), attacks.count)


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
        judge_keys: Judge → hash of what its verdicts depend on beside the answers: two judges of one name and different
            keys are not the same judge. Missing for judges of before it was kept.
        agreement: How far every two judges agree, where several were used.
        disagreements: Answers on which judges differ: the rows of `disagreements.jsonl`.
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
    judge_keys: dict[str, str] = Field(default_factory=dict)
    agreement: list[JudgeAgreement] = Field(default_factory=list)
    disagreements: int = Field(default=0, ge=0)

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

    def refusals_on(self, suite: SuiteScores) -> list[Refusals]:
        """Return the share of refusals on a suite by each judge that tells, in their order.

        By judges that tell only attacks it is the share of attacks that failed; they come after the others.
        """
        told = [Refusals(judge, suite.refusal_rate[judge]) for judge in self.judges if judge in suite.refusal_rate]
        attacks = {
            judge: suite.attack_success_rate.get(judge) for judge in self.judges if judge not in suite.refusal_rate
        }
        return told + [Refusals(judge, _failed(rate)) for judge, rate in attacks.items() if rate is not None]

    @property
    def harmfulness_judge(self) -> str | None:
        """The first judge that rates harmfulness, or None."""
        return next((judge for suite in self.suites for judge in suite.harmfulness), None)
