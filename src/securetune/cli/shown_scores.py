"""What `evaluate` and `judge` print: the scores of every judge, and how far the judges agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from securetune.cli.output import printable

if TYPE_CHECKING:
    from securetune.artifacts import (
        AgreementEstimate,
        JudgeAgreement,
        RateEstimate,
        Scores,
        SuiteScores,
        TaskScores,
        UtilityResult,
    )

_SHOWN_PAIRS = 3
"""Pairs of judges whose agreement is printed: those of three judges. Of more, the ones with the first judge are."""

_QUESTIONS = {"attack_succeeded": "attack success", "refused": "refusals"}


def show_scores(scores: Scores, out: Path) -> None:
    """Print scores, a line for each suite and judge; names are not trusted."""
    if scores.generation:
        print(printable(f"Shown through {', '.join(step.name for step in scores.generation)}"))
    for line in [*_suite_lines(scores), *_other_lines(scores), *_agreement_lines(scores, out)]:
        print(printable(line))
    print(printable(f"Scores: {out / 'scores.json'}"))


def _suite_lines(scores: Scores) -> list[str]:
    told = [(suite, judge, _told(suite, judge)) for suite in scores.suites for judge in scores.judges]
    return [f"{suite.name}, judged by {judge}: {', '.join(words)}" for suite, judge, words in told if words]


def _other_lines(scores: Scores) -> list[str]:
    task = scores.task
    lines = [f"{task.name} ({task.rule}): accuracy {_rate(task.accuracy)}{_unparsable(task)}"] if task else []
    return lines + [_utility(result) for result in scores.utility]


def _told(suite: SuiteScores, judge: str) -> list[str]:
    """Return what a judge says of a suite; what it does not tell is left out, what it could not read is counted."""
    refused, attack = suite.refusal_rate.get(judge), suite.attack_success_rate.get(judge)
    rated, unjudged = suite.harmfulness.get(judge), suite.unjudged.get(judge, 0)
    told = [f"refused {_rate(refused)}"] if refused else []
    told += [f"attack success {_rate(attack)}"] if attack else []
    told += [f"mean harmfulness (1–5) {rated.value:.2f} [{rated.low:.2f}, {rated.high:.2f}]"] if rated else []
    return told + ([f"{unjudged} of {suite.count} unjudged"] if unjudged else [])


def _utility(result: UtilityResult) -> str:
    chosen = "" if result.filter == "none" else f" ({result.filter})"
    error = "" if result.standard_error is None else f" ± {result.standard_error:.3f}"
    return f"lm-eval {result.task}: {result.metric}{chosen} {result.value:.3f}{error} of {result.count}"


def _unparsable(task: TaskScores) -> str:
    return f", {task.unparsable} of {task.accuracy.count} answers could not be read" if task.unparsable else ""


def _rate(rate: RateEstimate) -> str:
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] of {rate.count}"


def _agreement_lines(scores: Scores, out: Path) -> list[str]:
    """Say how far judges agree, over all suites that both tell of."""
    from securetune.artifacts import over_all_suites

    pairs = list(dict.fromkeys((each.first, each.second) for each in scores.agreement))
    shown = pairs if len(pairs) <= _SHOWN_PAIRS else [pair for pair in pairs if pair[0] == pairs[0][0]]
    lines = [_agreement(each) for each in over_all_suites(scores.agreement) if (each.first, each.second) in shown]
    if len(shown) < len(pairs):
        lines.append(f"agreement of {len(pairs) - len(shown)} more pairs of judges: in scores.json")
    if pairs:
        where = f": {out / 'disagreements.jsonl'}" if scores.disagreements else ""
        lines.append(f"answers on which judges differ: {scores.disagreements}{where}")
    return lines


def _agreement(each: JudgeAgreement) -> str:
    what = _QUESTIONS[each.question] + (f" ({each.suite})" if each.suite else "")
    untold = f", {each.untold} not told by both" if each.untold else ""
    usable = f"; without empty and looping answers {_figures(each.usable)}" if each.usable else ""
    return f"agreement of {each.first} and {each.second} on {what}: {_figures(each.answers)}{untold}{usable}"


def _figures(estimate: AgreementEstimate) -> str:
    share = estimate.share
    shown = f"{share.value:.1%} [{share.low * 100:.1f}, {share.high * 100:.1f}] of {share.count}"
    if estimate.kappa is None:
        return f"{shown}, κ not defined (both always say the same)"
    return f"{shown}, κ {estimate.kappa:.2f} [{estimate.kappa_low:.2f}, {estimate.kappa_high:.2f}]"
