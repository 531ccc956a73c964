"""What `run`, `demo` and `report` have in common: doing a run under a display, and showing the comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from securetune.cli.display import RunDisplay
from securetune.cli.output import only_results_on_stdout, print_table

if TYPE_CHECKING:
    from securetune.artifacts import Comparison
    from securetune.config import RunConfig


def do_run(config: RunConfig, out: Path) -> Comparison:
    """Run with a display on stderr, and return the comparison."""
    from securetune.artifacts import Comparison, read_artifact

    with only_results_on_stdout():
        from securetune.pipeline import RunFolder, run

        with RunDisplay() as display:
            run(config, out, display)
    return read_artifact(RunFolder(out).comparison, Comparison)


def comparison_document(comparison: Comparison, run_folder: Path) -> dict[str, Any]:
    """Return the comparison as a JSON document, with where the report is."""
    return {**comparison.model_dump(mode="json"), "report": str(run_folder / "report.html")}


def show_comparison(comparison: Comparison, run_folder: Path, *remarks: str) -> None:
    """Print the table, the verdict, what else there is to say, and where the report is."""
    from securetune.reporting import comparison_table

    print_table(comparison_table(comparison))
    print(f"\n{comparison.verdict}")
    if comparison.control_verdict:
        print(comparison.control_verdict)
    if comparison.recommendation:
        print(comparison.recommendation)
    for remark in remarks:
        print(remark)
    print(f"Report: {run_folder / 'report.html'}")
