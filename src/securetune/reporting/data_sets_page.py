"""An experiment on several data sets as a page of Markdown: the methods, and what they cost and keep on each."""

from __future__ import annotations

from collections.abc import Mapping

from securetune.artifacts import ComparedRow, Experiment, MatchedBy, MatchedComparison
from securetune.reporting.experiment_page import MATCHED_HEADINGS, cell, markdown_row, plain_markdown

_SHOWN = {"attack_success_rate": "ASR", "over_refusal_rate": "over-refusal", "task_accuracy": "task accuracy"}


def data_sets_page(experiments: Mapping[str, Experiment], title: str = "Experiment on several data sets") -> str:
    """Return the page: for each way of matching a table with one row a method and three columns a data set.

    Attack success rates are the mean over the harmful suites where there are several. Each data set has a page of its
    own with everything else, to which the headings lead.

    Args:
        experiments: Data set → what was found.
        title: Heading of the page.
    """
    parts = [f"# {plain_markdown(title)}", "", "Data sets, each with a page of its own: "]
    parts[-1] += ", ".join(f"[{plain_markdown(name)}]({name}/experiment.md)" for name in experiments) + "."
    for by, heading in MATCHED_HEADINGS.items():
        found = {name: _matched(experiment, by) for name, experiment in experiments.items()}
        if any(found.values()):
            parts += ["", f"## {heading}", "", *_table(found, experiments)]
    return "\n".join([*parts, ""])


def _matched(experiment: Experiment, by: MatchedBy) -> MatchedComparison | None:
    return next((each for each in experiment.matched if each.by == by and each.comparison is not None), None)


def _table(found: Mapping[str, MatchedComparison | None], experiments: Mapping[str, Experiment]) -> list[str]:
    shown = {name: _rows(matched) for name, matched in found.items() if matched is not None}
    headings = [f"{plain_markdown(name)}: {what}" for name, rows in shown.items() for what in rows]
    methods = list(dict.fromkeys(point.method for each in experiments.values() for point in each.points))
    lines = [markdown_row(["method", *headings]), markdown_row(["---", *["---:"] * len(headings)])]
    for method in methods:
        cells = [_cell(row, method) for rows in shown.values() for row in rows.values()]
        lines.append(markdown_row([plain_markdown(method), *cells]))
    lost = [plain_markdown(name) for name, matched in found.items() if matched is None]
    return [*lines, *(["", f"Nothing to compare on {', '.join(lost)}."] if lost else [])]


def _rows(matched: MatchedComparison) -> dict[str, ComparedRow]:
    """Choose of each metric one row: the mean over suites if there is one, else the first suite."""
    assert matched.comparison is not None
    chosen: dict[str, ComparedRow] = {}
    for row in matched.comparison.rows:
        what = _SHOWN.get(row.metric)
        if what is not None and (what not in chosen or row.suite is None):
            chosen[what] = row
    return chosen


def _cell(row: ComparedRow, method: str) -> str:
    return cell(row, method) if method in row.values else "not compared"
