"""`securetune judge EVALUATION --judge NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securetune.cli.display import StageDisplay
from securetune.cli.errors import reports_errors
from securetune.cli.options import Json, Set
from securetune.cli.output import only_results_on_stdout, print_json
from securetune.cli.shown_scores import show_scores


@reports_errors
def judge(
    evaluation: Annotated[Path, typer.Argument(metavar="EVALUATION", help="Folder that `evaluate` wrote.")],
    judge: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Judge to ask (repeatable).")] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Judge the answers to this suite alone (repeatable). Left out: to all."),
    ] = None,
    only: Annotated[
        bool, typer.Option("--only", help="Drop the verdicts of all other judges; the first one named leads.")
    ] = False,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Judge saved answers by further judges. Loads no model; earlier verdicts stay, and none is asked for twice."""
    from securetune.config import JudgeConfig, parse_overrides, validate

    config = validate(JudgeConfig, parse_overrides(set_ or []))
    with only_results_on_stdout():
        from securetune.evaluation import judge_saved_responses

        with StageDisplay() as progress:
            scores = judge_saved_responses(evaluation, judge or [], suite, only, config.evaluation, progress)
    if json_:
        print_json(scores.model_dump(mode="json"))
    else:
        show_scores(scores, evaluation)
