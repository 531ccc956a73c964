"""`securetune ls models|methods|suites|judges`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json
from securetune.cli.output import only_results_on_stdout, print_json, printable

Listed = Literal["models", "methods", "suites", "judges"]


@reports_errors
def ls(
    what: Annotated[Listed, typer.Argument(metavar="models|methods|suites|judges", help="What to list.")],
    json_: Json = False,
) -> None:
    """List what goes by a name. Models, methods, suites or judges."""
    rows = _rows(what)
    if json_:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:{width}}  {printable(row['description'])}")


def _rows(what: Listed) -> list[dict[str, str]]:
    """Ask the registry; nothing is listed here by hand."""
    with only_results_on_stdout():
        if what == "methods":
            from securetune.defenses import list_defenses

            return [{"name": m.name, "description": m.summary, "source": m.source} for m in list_defenses()]
        if what == "models":
            from securetune.models import list_models

            return [{"name": model.name, "description": model.description} for model in list_models()]
        from securetune.evaluation import list_judges, list_suites

        listed = list_suites() if what == "suites" else list_judges()
        return [{"name": item.name, "description": item.description} for item in listed]
