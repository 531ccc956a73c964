"""The application that all commands belong to."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from securetune import __version__
from securetune.cli.analyze import analyze
from securetune.cli.compare import compare
from securetune.cli.demo import demo
from securetune.cli.errors import reports_errors
from securetune.cli.evaluate import evaluate
from securetune.cli.experiment import experiment
from securetune.cli.export import export
from securetune.cli.gate import NO_DECISION, GateCommand, gate
from securetune.cli.judge import judge
from securetune.cli.ls import ls
from securetune.cli.merge import merge
from securetune.cli.patch import patch
from securetune.cli.plan import plan
from securetune.cli.protect import protect
from securetune.cli.report import report
from securetune.cli.run import run
from securetune.cli.search import search
from securetune.cli.tiny_world import tiny_world
from securetune.cli.train import train
from securetune.errors import ConfigError
from securetune.processes import is_launched_main, launched_count

app = typer.Typer(
    name="securetune",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: nothing to import for it, and it reads the same in a log
    pretty_exceptions_enable=False,
)

_COMMANDS = (
    demo, plan, run, experiment, analyze, search, protect, train, merge, patch, export, evaluate, judge, compare, gate,
    report, ls,
)  # fmt: skip
for _command in _COMMANDS:
    app.command(cls=GateCommand if _command is gate else None)(_command)
app.add_typer(tiny_world, name="tiny-world")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"securetune {__version__}")
        raise typer.Exit


_SHARED_COMMANDS = ("analyze",)
"""Those whose work several processes share; any other would be done by each of them, in the same folder."""


@app.callback()
@reports_errors
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Fine-tune a chat model without losing its safety."""
    command, count = context.invoked_subcommand, launched_count()
    if count > 1 and command not in _SHARED_COMMANDS:
        error = ConfigError(
            f"securetune {command} works in one process; got {count}. Start it without torchrun; to train in several, "
            "use securetune.SecureSFTTrainer in a script of your own."
        )
        if command == "gate":
            error.exit_status = NO_DECISION
        raise error


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # otherwise a forked data loader prints a warning
    warnings.showwarning = _show_warning
    app()


def _show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    if is_launched_main():
        print(f"warning: {message}", file=sys.stderr)
