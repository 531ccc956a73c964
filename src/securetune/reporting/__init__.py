"""Reporting: what a run showed, for people (`report.html`, a table) and for programs (`comparison.json`)."""

from securetune.reporting.compare import compare_runs
from securetune.reporting.compare_models import METRICS, compare_evaluations
from securetune.reporting.data_sets_page import data_sets_page
from securetune.reporting.experiment import summarize_experiment
from securetune.reporting.experiment_page import FRONTIER, by_reason, experiment_page, frontier_svg
from securetune.reporting.gate import gate_evaluation
from securetune.reporting.gate_text import gate_lines
from securetune.reporting.heatmap import heatmap_svg
from securetune.reporting.matched_table import matched_table
from securetune.reporting.model_table import model_table
from securetune.reporting.report import write_report
from securetune.reporting.table import comparison_table
from securetune.untrusted_text import without_control_characters

__all__ = [
    "FRONTIER",
    "METRICS",
    "by_reason",
    "compare_evaluations",
    "compare_runs",
    "comparison_table",
    "data_sets_page",
    "experiment_page",
    "frontier_svg",
    "gate_evaluation",
    "gate_lines",
    "heatmap_svg",
    "matched_table",
    "model_table",
    "summarize_experiment",
    "without_control_characters",
    "write_report",
]
