"""`securetune compare REFERENCE MODEL …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json
from securetune.cli.output import only_results_on_stdout, print_json, print_table, printable


@reports_errors
def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(
            metavar="EVALUATION...",
            help="Folders that `evaluate` wrote, the reference first; NAME=DIR names one, NAME=DIR1,DIR2 joins seeds.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the comparison as JSON here too.")] = None,
    json_: Json = False,
) -> None:
    """Compare evaluated models, prompt by prompt: differences with 95% intervals and exact McNemar tests."""
    from securetune.artifacts import write_json
    from securetune.errors import ConfigError

    with only_results_on_stdout():
        from securetune.reporting import compare_evaluations, model_table

        groups = _groups(evaluations)
        if out is not None and out.exists():
            raise ConfigError(f"{out}: exists already. Give another --out, or remove it.")
        comparison = compare_evaluations(groups)
    if out is not None:
        write_json(out, comparison)
    if json_:
        print_json(comparison.model_dump(mode="json"))
        return
    print_table(model_table(comparison))
    print(
        "In brackets 95% intervals; below, the change against the reference in points (ratings: as they are), how many "
        "prompts have the outcome under one model alone, and p after Holm's correction (McNemar's; for several seeds "
        "or suites a permutation test over prompts)."
    )
    for warning in comparison.warnings:
        print(f"Warning: {printable(warning)}")


def _groups(evaluations: list[str]) -> dict[str, list[Path]]:
    """Take the arguments apart; a folder without a name is called as it was given."""
    from securetune.errors import ConfigError

    groups: dict[str, list[Path]] = {}
    problems = []
    for given in evaluations:
        is_folder = Path(given).exists()
        name, equals, listed = given.partition("=")
        label, folders = (given, [given]) if is_folder or not equals else (name, listed.split(","))
        if not label.strip() or not all(folder.strip() for folder in folders):
            problems.append(f"an evaluation must be DIR, NAME=DIR or NAME=DIR1,DIR2; got {given!r}")
        elif label in groups:
            problems.append(f'the name "{label}" must be given once; NAME=DIR1,DIR2 joins the seeds of one model')
        else:
            groups[label] = [Path(folder) for folder in folders]
    if problems:
        raise ConfigError(problems)
    return groups
