"""`securetune report RUN_DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json
from securetune.cli.output import only_results_on_stdout, print_json
from securetune.cli.results import comparison_document, show_comparison


@reports_errors
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder, finished or not.")],
    json_: Json = False,
) -> None:
    """Write a run's report.html and comparison.json. The run may be unfinished."""
    from securetune.artifacts import Comparison, read_artifact

    with only_results_on_stdout():
        from securetune.reporting import write_report

        write_report(run_dir)
    comparison = read_artifact(run_dir / "comparison.json", Comparison)
    if json_:
        print_json(comparison_document(comparison, run_dir))
    else:
        show_comparison(comparison, run_dir)
