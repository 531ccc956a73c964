"""`securetune compare` as a table on the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from securetune.artifacts import ComparedRow, ComparedValue, ModelComparison, PairedChange
from securetune.reporting.compare_models import METRICS
from securetune.untrusted_text import without_control_characters

_NOT_MEASURED = "–"


def model_table(comparison: ModelComparison) -> Table:
    """Make a table with one row a metric, judge and suite; below each value its interval and its change."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric, judge, suite", overflow="fold")
    for label in comparison.sources:
        reference = " (reference)" if label == comparison.reference else ""
        table.add_column(plain_text(f"{label}{reference}"), justify="right", overflow="fold")
    for row in comparison.rows:
        cells = [cell_text(row, label) for label in comparison.sources]
        table.add_row(heading_text(row), *cells)
    return table


def heading_text(row: ComparedRow) -> Text:
    """Name a row: its metric, and below it judge and suite."""
    metric = "task accuracy" if row.metric == "task_accuracy" else METRICS[row.metric].heading
    suite = row.suite or f"mean over {len(row.suites)} suites"
    return plain_text(metric) + Text(f"\n{_clean(', '.join(filter(None, [row.judge, suite])))}", style="dim")


def cell_text(row: ComparedRow, label: str) -> Text:
    """Return a model's value with its interval, and below it its change against the reference."""
    value, change = row.values[label], row.changes.get(label)
    if value is None:
        return Text(_NOT_MEASURED)
    lines = [_value(value, row.metric == "harmfulness")]
    if change is not None:
        lines.append(_change(change, row.metric == "harmfulness"))
    return Text("\n").join(lines)


def _value(value: ComparedValue, is_rating: bool) -> Text:
    shown = [_number(each, is_rating) for each in (value.value, value.low, value.high)]
    unjudged = f", {value.unjudged} unjudged" if value.unjudged else ""
    return Text(f"{shown[0]} [{shown[1]}, {shown[2]}] of {value.count}{unjudged}")


def _change(change: PairedChange, is_rating: bool) -> Text:
    low, high = _number(change.low, is_rating, signed=True), _number(change.high, is_rating, signed=True)
    text = f"{_number(change.value, is_rating, signed=True)} [{low}, {high}]"
    if change.p_holm is not None:
        against = "" if change.only_here is None else f", {change.only_here} against {change.only_reference}"
        text += f"{against}, p {_probability(change.p_holm)}"
    return Text(text, style="dim")


def _number(value: float, is_rating: bool, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value:{sign}.2f}" if is_rating else f"{value * 100:{sign}.1f}{'' if signed else '%'}"


def _probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def plain_text(text: str) -> Text:
    """Return text that is no markup and has no control characters."""
    return Text(_clean(text))


def _clean(text: str) -> str:
    return " ".join(without_control_characters(text).split())
