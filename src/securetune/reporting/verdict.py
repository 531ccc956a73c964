"""What the numbers say, in a sentence: computed, so that it is the same for good and for bad news."""

from __future__ import annotations

from collections.abc import Mapping

from securetune.artifacts import MethodComparison, MetricSummary
from securetune.reporting.run_results import START

SAME_TASK_ACCURACY = 0.02
"""Largest difference of task accuracy, as a share, at which two methods count as equally good at the task."""

_MOST_CLAUSES = 6
"""Most methods of which each gets a clause of its own; of more, nobody would read it."""

_NAMED_ANYWAY = ("ml-lr", "swat")
_LOWEST = 3

_NAMES = {START: "Start model", "ift": "IFT", "ml-lr": "ML-LR", "swat": "SWAT"}

Rows = Mapping[str, MethodComparison]


def display_name(label: str) -> str:
    """Return a label as the papers write it; a label of the user's stays as it is."""
    return _NAMES.get(label, label)


def verdict_sentence(rows: Rows) -> str:
    """Say what plain fine-tuning did to safety, and for each method whether it helped.

    "Helped" means that the interval of the difference to plain fine-tuning, over seeds and prompts, excludes 0.
    """
    start, baseline = rows.get(START), rows.get("ift")
    if start is None or start.asr is None:
        return "The start model has not been evaluated on harmful prompts, so nothing can be said about safety yet."
    if baseline is None or baseline.asr is None:
        return "Plain fine-tuning (IFT) is not part of this run, so there is nothing to compare the methods with."
    opening = _erosion(start.asr, baseline.asr)
    methods = {label: row for label, row in rows.items() if row.asr_minus_ift is not None and not row.is_control}
    if not methods:
        return f"{opening}; no other method is complete yet."
    if len(methods) > _MOST_CLAUSES:
        return "; ".join([opening, *_clauses_of_many(methods, baseline)]) + "."
    return "; ".join([opening, *(_clause(label, row, baseline) for label, row in methods.items())]) + "."


def _clauses_of_many(methods: Rows, baseline: MethodComparison) -> list[str]:
    """Count the methods that helped, and name those with the lowest rates, and the paper's own."""
    equal = {label: row for label, row in methods.items() if _learned_as_much(row.task_accuracy, baseline)}
    helped = {label: row.asr.mean for label, row in equal.items() if row.asr and _is_below(row)}
    named = dict.fromkeys([*sorted(helped, key=helped.__getitem__)[:_LOWEST], *_NAMED_ANYWAY])
    return [
        f"{len(helped)} of {len(methods)} methods ended clearly below that at the same task accuracy",
        *(_clause(label, methods[label], baseline) for label in named if label in methods),
        "the table has all of them",
    ]


def control_sentence(rows: Rows) -> str | None:
    """Say whether the choice of modules matters: does SWAT on other modules protect as well as on the chosen ones?"""
    swat = rows.get("swat")
    clauses = []
    for label, row in rows.items():
        is_other_set = row.is_control and row.method == "swat" and row.asr is not None
        if swat is None or swat.asr is None or row.asr is None or not is_other_set:
            continue
        figures = f"{label} {_percent(row.asr.mean)}, SWAT {_percent(swat.asr.mean)}"
        if row.asr.low > swat.asr.high:
            clauses.append(f"warming up other modules of the same size is clearly worse ({figures})")
        elif row.asr.high < swat.asr.low:
            clauses.append(f"warming up other modules of the same size is clearly better ({figures})")
        else:
            clauses.append(f"warming up other modules of the same size is not clearly different ({figures})")
    return f"Does the choice of modules matter? In this run {'; '.join(clauses)}." if clauses else None


def _erosion(start: MetricSummary, tuned: MetricSummary) -> str:
    figures = f"from {_percent(start.mean)} to {_percent(tuned.mean)}"
    if tuned.low > start.high:
        return f"Plain fine-tuning (IFT) raised the attack success rate {figures}"
    return (
        f"Plain fine-tuning (IFT) did not clearly raise the attack success rate ({figures}), so this run can hardly "
        "show whether a method protects"
    )


def _clause(label: str, row: MethodComparison, baseline: MethodComparison) -> str:
    assert row.asr is not None
    assert baseline.asr is not None
    assert row.asr_minus_ift is not None
    name, share = display_name(label), _percent(row.asr.mean)
    task = _task(row.task_accuracy, baseline.task_accuracy)
    if _is_below(row):
        return f"{name} kept it at {share} ({row.asr.mean / baseline.asr.mean:.2f} × IFT's) {task}"
    if row.asr_minus_ift.low > 0:
        return f"{name} made it worse: {share} {task}"
    return f"{name} does not clearly help here: {share} {task}"


def _is_below(row: MethodComparison) -> bool:
    return row.asr_minus_ift is not None and row.asr_minus_ift.high < 0


def _learned_as_much(ours: MetricSummary | None, baseline: MethodComparison) -> bool:
    theirs = baseline.task_accuracy
    return ours is not None and theirs is not None and abs(ours.mean - theirs.mean) <= SAME_TASK_ACCURACY


def _task(ours: MetricSummary | None, baseline: MetricSummary | None) -> str:
    if ours is None or baseline is None:
        return "(task accuracy was not measured)"
    change = ours.mean - baseline.mean
    if abs(change) <= SAME_TASK_ACCURACY:
        return f"at the same task accuracy ({_percent(ours.mean)})"
    points = f"{abs(change) * 100:.1f} points {'above' if change > 0 else 'below'} IFT's"
    return f"at a task accuracy of {_percent(ours.mean)}, {points}"


def _percent(share: float) -> str:
    return f"{share:.1%}"
