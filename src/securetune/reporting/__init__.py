"""Reporting: what a run showed, for people (`report.html`, a table) and for programs (`comparison.json`)."""

from securetune.reporting.compare import compare_runs
from securetune.reporting.heatmap import heatmap_svg
from securetune.reporting.report import write_report
from securetune.reporting.table import comparison_table
from securetune.untrusted_text import without_control_characters

__all__ = ["compare_runs", "comparison_table", "heatmap_svg", "without_control_characters", "write_report"]
