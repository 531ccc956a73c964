"""`securetune run CONFIG.yaml --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json, Set
from securetune.cli.output import print_json
from securetune.cli.results import comparison_document, do_run, show_comparison


@reports_errors
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The recipe.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder: new, empty, or this same run.")],
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Run all stages, from analysis to report. Goes on where an interrupted run stopped."""
    from securetune.config import load_run_config, parse_overrides

    comparison = do_run(load_run_config(config, parse_overrides(set_ or [])), out)
    if json_:
        print_json(comparison_document(comparison, out))
    else:
        show_comparison(comparison, out)
