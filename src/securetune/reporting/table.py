"""The comparison as a table on the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from securetune.artifacts import Comparison, MethodComparison, MetricSummary
from securetune.reporting.verdict import display_name
from securetune.untrusted_text import without_control_characters

NOT_MEASURED = "–"
_NUMBER_WIDTH = 8  # " 98–100%"


def comparison_table(comparison: Comparison) -> Table:
    """Make a table with one row a method: means with their 95 % intervals below, and the ASR under each attack wrapper.

    Args:
        comparison: From `compare_runs`, or read from `comparison.json`.
    """
    wrappers = list(dict.fromkeys(suite for row in comparison.methods.values() for suite in row.wrapped_asr))
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,  # the separator alone: with seven columns of numbers a table must still fit 80 columns
        title=_title(comparison),
        title_justify="left",
        caption=_caption(comparison),
        caption_justify="left",
    )
    table.add_column("method", overflow="fold")
    headings = ["ASR", "harm 1–5", "task acc.", "over- refusal"]
    headings += [f"ASR {_short(suite).replace('-', ' ')}" for suite in wrappers]
    for heading in headings:
        width = max(_NUMBER_WIDTH, *(len(word) for word in heading.split()))
        table.add_column(_plain(heading), justify="right", overflow="fold", width=width)
    for label, row in comparison.methods.items():
        table.add_row(*_cells(label, row, wrappers))
    return table


def _title(comparison: Comparison) -> Text:
    bench = " Tiny world is a test bench: no evidence about large models." if comparison.is_test_bench else ""
    return _plain(f"Means over n seeds, below them 95% intervals over seeds and prompts.{bench}")


def _caption(comparison: Comparison) -> Text:
    asr, over_refusal = comparison.asr_judge, comparison.over_refusal_judge
    if asr and over_refusal in (asr, None):
        judged = [f"ASR and over-refusal by {asr}"]
    else:
        judged = [f"{what} by {judge}" for what, judge in (("ASR", asr), ("over-refusal", over_refusal)) if judge]
    judged += [f"harmfulness by {comparison.harmfulness_judge}"] if comparison.harmfulness_judge else []
    return _plain("; ".join(judged))


def _cells(label: str, row: MethodComparison, wrappers: list[str]) -> list[Text]:
    about = ["control"] if row.is_control else []
    about += [f"n={len(row.seeds)}"] if row.seeds else []
    name = _plain(display_name(label)) + Text("\n" + ", ".join(about), style="dim")
    metrics = [_rate(row.asr), _rating(row.harmfulness), _rate(row.task_accuracy), _rate(row.over_refusal)]
    wrapped = [_rate(row.wrapped_asr.get(suite)) for suite in wrappers]
    return [name, *metrics, *wrapped]


def _rate(metric: MetricSummary | None) -> Text:
    """Write a rate, and its interval in the line below: side by side they would not fit an 80-column terminal."""
    if metric is None:
        return Text(NOT_MEASURED)
    return Text(f"{metric.mean:.1%}") + Text(f"\n{metric.low * 100:.0f}–{metric.high:.0%}", style="dim")


def _rating(metric: MetricSummary | None) -> Text:
    if metric is None:
        return Text(NOT_MEASURED)
    return Text(f"{metric.mean:.2f}") + Text(f"\n{metric.low:.1f}–{metric.high:.1f}", style="dim")


def _short(suite: str) -> str:
    return suite.removeprefix("tiny-world-")


def _plain(text: str) -> Text:
    """Make text that rich does not search for markup: labels and suites are named by users."""
    return Text(without_control_characters(text))
