"""`securetune experiment CONFIG.yaml --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from securetune.cli.display import RunDisplay
from securetune.cli.errors import reports_errors
from securetune.cli.options import Json, Set
from securetune.cli.output import only_results_on_stdout, print_json, print_table, printable

if TYPE_CHECKING:
    from securetune.artifacts import Experiment


@reports_errors
def experiment(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder: new, empty, or this same experiment.")],
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Try methods at many settings and seeds, and compare them at matched task accuracy and training loss."""
    from securetune.config import ONLY, load_experiment_configs, parse_overrides

    resolved = load_experiment_configs(config, parse_overrides(set_ or []))
    with only_results_on_stdout():
        from securetune.pipeline.experimenting import PAGE, experiments

        with RunDisplay() as display:
            found = experiments(resolved, out, display)
    if json_:
        documents = {name: each.model_dump(mode="json") for name, each in found.items()}
        print_json(documents.get(ONLY, documents))
        return
    for name, each in found.items():
        _show(each, name)
    print(f"Results: {out / PAGE}")


def _show(found: Experiment, data_set: str) -> None:
    from securetune.reporting import by_reason, matched_table

    if data_set:
        print(f"Data set {data_set}")
    for matched in found.matched:
        print(f"Matched by {matched.by.replace('_', ' ')}, target {matched.target:.4g}:")
        for reason, methods in by_reason(matched).items():
            print(f"Not compared: {', '.join(methods)}; {reason}.")
        if matched.comparison is not None:
            print_table(matched_table(matched))
    for note in found.notes:
        print(f"Note: {printable(note)}")
