"""`securetune ls models|methods|presets|defenses|suites|tasks|attacks|judges`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from securetune.cli.errors import reports_errors
from securetune.cli.options import Json
from securetune.cli.output import only_results_on_stdout, print_json, printable

if TYPE_CHECKING:
    from securetune.config.presets import Preset
    from securetune.defenses import DefenseDescription
    from securetune.evaluation import RegisteredSuite, RegisteredTask

Listed = Literal["models", "methods", "presets", "defenses", "suites", "tasks", "attacks", "judges"]

_ALIGNED = ("name", "stage", "purpose", "kind", "prompts", "licence")
"""Columns before the description; what has none of one does without it."""


@reports_errors
def ls(
    what: Annotated[
        Listed,
        typer.Argument(metavar="models|methods|presets|defenses|suites|tasks|attacks|judges", help="What to list."),
    ],
    json_: Json = False,
) -> None:
    """List what goes by a name. Models, methods, presets, defenses, suites, tasks, attacks or judges."""
    rows = _rows(what)
    if json_:
        print_json(rows)
        return
    shown = [{**row, "prompts": _shown_counts(row.get("prompts"))} for row in rows]
    widths = {column: max(len(row.get(column) or "") for row in shown) for column in _ALIGNED}
    for row in shown:
        cells = [f"{row.get(column) or '':{width}}" for column, width in widths.items() if width]
        source = f" {row['source']}: {row['repository']}" if row.get("repository") else ""
        needs = f" Needs {row['needs']}." if row.get("needs") else ""
        source = f" {row['source']}." if "needs" in row else source
        source = f" Evidence: {row['evidence']}." if "evidence" in row else source
        print("  ".join([*cells, printable(row["description"] + needs + source)]))


def _rows(what: Listed) -> list[dict[str, Any]]:
    """Ask the registry; nothing is listed here by hand."""
    with only_results_on_stdout():
        if what in ("methods", "defenses"):
            from securetune.defenses import list_defenses

            listed = [each for each in list_defenses() if what == "defenses" or each.stage == "training"]
            return [_defense_row(each) for each in listed]
        if what == "presets":
            from securetune.config.presets import list_presets

            return [_preset_row(preset) for preset in list_presets()]
        if what == "models":
            from securetune.models import list_models

            return [{"name": model.name, "description": model.description} for model in list_models()]
        from securetune.evaluation import list_attacks, list_judges, list_suites, list_tasks

        if what == "suites":
            return [_suite_row(suite) for suite in list_suites()]
        if what == "tasks":
            return [_task_row(task) for task in list_tasks()]
        if what == "attacks":
            return [{"name": a.name, "description": a.description, "source": a.source} for a in list_attacks()]
        return [{"name": item.name, "description": item.description} for item in list_judges()]


def _preset_row(preset: Preset) -> dict[str, Any]:
    return {**preset._asdict(), "training": dict(preset.training)}


def _defense_row(defense: DefenseDescription) -> dict[str, Any]:
    row = defense._asdict()
    description = row.pop("summary")
    return {**row, "description": description}


def _suite_row(suite: RegisteredSuite) -> dict[str, Any]:
    row = {"name": suite.name, "description": suite.description, "kind": suite.kind, "wrapper": suite.wrapper}
    return {**row, **_facts(suite), "hub": getattr(suite.published, "hub", None)}


def _task_row(task: RegisteredTask) -> dict[str, Any]:
    return {"name": task.name, "description": task.description, "kind": task.rule, **_facts(task)}


def _facts(listed: RegisteredSuite | RegisteredTask) -> dict[str, Any]:
    if listed.facts is None:
        return {"splits": list(listed.splits)}
    return {
        "version": listed.version_of(listed.splits[0]),
        "prompts": dict(listed.facts.counts),
        "licence": listed.facts.licence,
        "source": listed.facts.paper,
        "repository": listed.facts.repository,
    }


def _shown_counts(counts: dict[str, int] | None) -> str:
    """Return the default split's count, and the others' where they differ."""
    if not counts:
        return ""
    (_, first), *others = counts.items()
    return ", ".join([str(first), *(f"{split} {count}" for split, count in others if count != first)])
