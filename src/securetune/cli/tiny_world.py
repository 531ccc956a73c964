"""`securetune tiny-world build --out DIR --seed N`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json
from securetune.cli.output import only_results_on_stdout, print_json

tiny_world = typer.Typer(
    help="Make the embedded model. It is a test bench, and no evidence about large models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@tiny_world.callback()
def _group() -> None:
    """Keep `build` a command of its own; Typer drops the name of an only command."""


@tiny_world.command()
@reports_errors
def build(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for base/ and aligned/.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and rows; the shipped model has 0.")] = 0,
    json_: Json = False,
) -> None:
    """Make both checkpoints again from nothing: a quarter to half an hour on two cores."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with only_results_on_stdout():
        from securetune.tiny_world import build_tiny_world, missed_requirements

        figures = build_tiny_world(out, seed)
    missed = {name: missed_requirements(name, measured) for name, measured in figures.items()}
    if json_:
        measured = {name: figure.as_dict() for name, figure in figures.items()}
        print_json({"out": str(out), "seed": seed, "figures": measured, "missed_requirements": missed})
        return
    for name, figure in figures.items():
        print(f"{out / name}: " + ", ".join(f"{key} {value}" for key, value in figure.as_dict().items()))
        for sentence in missed[name]:
            print(f"  missed: {sentence}")
