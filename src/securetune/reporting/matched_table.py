"""The methods of an experiment at matched settings, as a table on the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from securetune.artifacts import ComparedRow, MatchedComparison
from securetune.reporting.model_table import cell_text, heading_text, plain_text


def matched_table(matched: MatchedComparison) -> Table:
    """Make a table with one row a method: its setting, and each metric with its change against the reference.

    Args:
        matched: Methods of which at least two were compared.

    Raises:
        ValueError: If there is no comparison.
    """
    if matched.comparison is None:
        raise ValueError("a table needs a comparison; got methods of which fewer than two were chosen")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("setting", overflow="fold")
    rows = [row for row in matched.comparison.rows if _is_shown(row, matched.comparison.rows)]
    for row in rows:
        table.add_column(heading_text(row), justify="right", overflow="fold")
    for label in matched.comparison.sources:
        table.add_row(plain_text(matched.chosen[label]), *(cell_text(row, label) for row in rows))
    return table


def _is_shown(row: ComparedRow, rows: list[ComparedRow]) -> bool:
    """Of an attack success rate on several suites show the mean and the first suite; the page has them all."""
    same = [other for other in rows if other.metric == row.metric]
    return row is same[0] or row.suite is None or len(same) == 1
