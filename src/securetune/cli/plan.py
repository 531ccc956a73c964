"""`securetune plan [CONFIG.yaml]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json, Set
from securetune.cli.output import only_results_on_stdout, print_json

if TYPE_CHECKING:
    from securetune.pipeline.planning import Plan


@reports_errors
def plan(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.yaml", help="A recipe, as `run` or `train` takes it.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="One method, or label of the recipe. Left out: all of a recipe.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Embedded model, folder or hub name.")] = None,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="Conversations, as JSON lines.")] = None,
    modules: Annotated[str | None, typer.Option(metavar="FILE", help="Manifest that `search` wrote.")] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Say what a run or a training would do, and load no weights. Every mistake in its input is found too."""
    from securetune.config import load_plan_config, parse_overrides

    resolved = load_plan_config(config, parse_overrides(set_ or []), method, model, data, modules)
    with only_results_on_stdout():
        from securetune.pipeline.planning import plan as make_plan

        planned = make_plan(resolved)
    if json_:
        print_json(planned.model_dump(mode="json"))
    else:
        _show(planned)


def _show(planned: Plan) -> None:
    import yaml

    from securetune.cli.output import print_table
    from securetune.cli.planned import (
        chains_table,
        data_sentence,
        example_text,
        memory_table,
        modules_table,
        phases_table,
    )

    print(yaml.safe_dump(planned.config, sort_keys=False, allow_unicode=False))
    print(f"Model: {planned.architecture}, {planned.parameter_count:,} parameters")
    for table in (modules_table(planned), chains_table(planned), phases_table(planned), memory_table(planned)):
        if table is not None:
            print_table(table)
    print(planned.memory_assumptions)
    print(f"\n{data_sentence(planned)}")
    example_text(planned)
    for note in planned.notes:
        print(f"Note: {note}")
