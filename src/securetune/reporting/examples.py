"""Example answers side by side: the same prompts, answered by the start model and by each method.

They are chosen by position in the suite, spread evenly, and never by what was answered: a hand-picked example proves
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from securetune.artifacts import Response, Verdict
from securetune.reporting.run_results import START, EvaluatedModel, RunResults
from securetune.untrusted_text import without_control_characters

_PLAIN_EXAMPLES = 3
_OTHER_EXAMPLES = 2
_WRAPPED_EXAMPLES = 1
_SHOWN_CHARACTERS = 600
_OFF_TOPIC = 2  # the highest rating of an answer that helps with nothing harmful


class ExampleAnswer(NamedTuple):
    """One model's answer, as it is shown.

    Attributes:
        label: Label of the method.
        text: The answer, cut at some length and without control characters; still to be escaped.
        verdict: What the judges say, in a few words.
        tone: `good`, `bad` or `plain`, for the colour beside the words.
    """

    label: str
    text: str
    verdict: str
    tone: str


class Example(NamedTuple):
    """One prompt with the answers of all models.

    Attributes:
        heading: Which suite it is from.
        prompt: Text of the last user turn; still to be escaped.
        expected: The right answer of a task, or None.
        answers: One a model.
    """

    heading: str
    prompt: str
    expected: str | None
    answers: list[ExampleAnswer]


def choose_examples(run: RunResults, labels: Sequence[str], asr_judge: str | None, rater: str | None) -> list[Example]:
    """Put answers side by side, those of each method's first seed.

    Args:
        run: The run.
        labels: Methods to show, in order; the start model's label among them.
        asr_judge: Judge whose verdict is shown.
        rater: Judge whose rating is shown, or None.
    """
    models = {label: model for label in labels if (model := _first_model(run, label)) is not None}
    if not models:
        return []
    scores = next(iter(models.values())).scores
    examples: list[Example] = []
    for suite in scores.suites:
        count = _WRAPPED_EXAMPLES if suite.wrapper else _PLAIN_EXAMPLES if suite.kind == "harmful" else _OTHER_EXAMPLES
        kind = f"harmful, wrapped as {suite.wrapper}" if suite.wrapper else suite.kind
        for place in spread(suite.count, count):
            answers = {label: model.responses(suite.name)[place] for label, model in models.items()}
            judged = {label: _judged(answer, suite.kind, asr_judge, rater) for label, answer in answers.items()}
            examples.append(_example(f"{suite.name} ({kind})", answers, judged))
    if scores.task is not None:
        for place in spread(scores.task.accuracy.count, _OTHER_EXAMPLES):
            answers = {label: model.responses(scores.task.name)[place] for label, model in models.items()}
            marked = {label: _marked(answer) for label, answer in answers.items()}
            examples.append(_example(f"{scores.task.name} (task)", answers, marked))
    return examples


def _first_model(run: RunResults, label: str) -> EvaluatedModel | None:
    if label == START:
        return run.start
    return next(iter(run.methods.get(label, [])), None)


def spread(size: int, count: int) -> list[int]:
    """Return evenly spread positions: of 171 prompts and three examples, 28, 85 and 142."""
    return sorted({(2 * part + 1) * size // (2 * count) for part in range(count)})


def _example(heading: str, answers: dict[str, Response], judged: dict[str, tuple[str, str]]) -> Example:
    first = next(iter(answers.values()))
    shown = [ExampleAnswer(label, excerpt(answer.response), *judged[label]) for label, answer in answers.items()]
    return Example(heading, excerpt(first.prompt), first.expected and excerpt(first.expected), shown)


def excerpt(text: str) -> str:
    """Return the beginning of an untrusted text, without control characters; still to be escaped."""
    clean = without_control_characters(text)
    return clean if len(clean) <= _SHOWN_CHARACTERS else f"{clean[:_SHOWN_CHARACTERS]} […]"


def _judged(answer: Response, kind: str, asr_judge: str | None, rater: str | None) -> tuple[str, str]:
    """Return what the judges say of an answer, and whether it is good news."""
    verdict = answer.verdicts.get(asr_judge or "")
    if verdict is None:
        return _problem(answer), "plain"
    if verdict.unparsable is not None:
        return ", ".join(["not judged", *filter(None, [_problem(answer)])]), "plain"
    refused = "refused" if kind == "harmful" else "refused though harmless"
    words = [refused if _declines(verdict) else "answered"]
    rating = answer.verdicts[rater].harmfulness if rater in answer.verdicts else None
    words += [f"harmfulness {rating} of 5"] if rating is not None else []
    words += [problem] if (problem := _problem(answer)) else []
    if _declines(verdict) == (kind == "harmful"):
        return ", ".join(words), "good"
    is_nonsense = answer.problem in ("empty", "looping") or (rating is not None and rating <= _OFF_TOPIC)
    return ", ".join(words), "plain" if is_nonsense else "bad"


def _declines(verdict: Verdict) -> bool:
    """Tell whether an answer declines; by a judge that tells only attacks, whether the attack failed."""
    return verdict.refused if verdict.refused is not None else not verdict.attack_succeeded


def _marked(answer: Response) -> tuple[str, str]:
    words = ["right" if answer.correct else "wrong"]
    words += [problem] if (problem := _problem(answer)) else []
    return ", ".join(words), "good" if answer.correct else "bad"


def _problem(answer: Response) -> str:
    return answer.problem or ""
