"""`securetune experiment CONFIG.yaml --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securetune.cli.display import RunDisplay
from securetune.cli.errors import reports_errors
from securetune.cli.options import Json, Set
from securetune.cli.output import only_results_on_stdout, print_json, print_table, printable


@reports_errors
def experiment(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder: new, empty, or this same experiment.")],
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Try methods at many settings and seeds, and compare them at matched task accuracy and training loss."""
    from securetune.config import load_experiment_config, parse_overrides

    resolved = load_experiment_config(config, parse_overrides(set_ or []))
    with only_results_on_stdout():
        from securetune.pipeline.experimenting import PAGE
        from securetune.pipeline.experimenting import experiment as do_experiment
        from securetune.reporting import by_reason, matched_table

        with RunDisplay() as display:
            found = do_experiment(resolved, out, display)
    if json_:
        print_json(found.model_dump(mode="json"))
        return
    for matched in found.matched:
        print(f"Matched by {matched.by.replace('_', ' ')}, target {matched.target:.4g}:")
        for reason, methods in by_reason(matched).items():
            print(f"Not compared: {', '.join(methods)}; {reason}.")
        if matched.comparison is not None:
            print_table(matched_table(matched))
    for note in found.notes:
        print(f"Note: {printable(note)}")
    print(f"Results: {out / PAGE}")
