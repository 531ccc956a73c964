"""Writes the generated parts of README.md and docs/, so that they cannot drift from the code: `make docs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from securetune.cli import app
from securetune.defenses import list_defenses
from securetune.evaluation import list_attacks, list_suites, list_tasks

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "suites.md", ROOT / "docs" / "utility.md")
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def commands_table() -> str:
    """Return a table of the commands with their flags, from the application itself."""
    rows = ["| command | what it does | flags |", "|---|---|---|"]
    for name, command in _commands(get_command(app), ""):
        arguments = [parameter.metavar for parameter in command.params if not parameter.opts[0].startswith("-")]
        flags = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        shown = " ".join([name, *arguments]).replace("|", "\\|")  # a bar would end the table's cell
        summary = command.help.partition("\n")[0].strip()
        rows.append(f"| `{shown}` | {summary} | {' '.join(f'`{flag}`' for flag in flags if flag != '--help')} |")
    return "\n".join(rows) + "\n"


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def methods_table() -> str:
    """Return a table of the registered defenses, by the stage at which they act."""
    rows = ["| name | stage | what it does | needs | source |", "|---|---|---|---|---|"]
    stages = ("data", "training", "weights", "generation")
    listed = sorted(list_defenses(), key=lambda each: stages.index(each.stage))
    for each in listed:
        stage = each.stage if each.purpose == "defense" else f"{each.stage}, {each.purpose}"
        rows.append(f"| `{each.name}` | {stage} | {each.summary} | {each.needs or '-'} | {each.source} |")
    return "\n".join(rows) + "\n"


def suites_table() -> str:
    """Return a table of the registered suites with their facts."""
    rows = [
        "| suite | kind | prompts | what it holds | version | licence | paper | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for suite in list_suites():
        facts, published = suite.facts, suite.published
        if facts is None:
            continue
        counts = ", ".join(f"`@{split}` {count}" for split, count in facts.counts.items())
        file = f"{facts.repository}: {published.form}; `{published.files[0]}`" if published else facts.repository
        file += f"; `hub:{published.hub}`" if published and published.hub else ""
        about = suite.description.replace("|", "\\|")
        version = suite.version_of(suite.splits[0])
        rows.append(
            f"| `{suite.name}` | {suite.kind} | {counts} | {about} | `{version}` | {facts.licence} | {facts.paper} "
            f"| {file} |"
        )
    return "\n".join(rows) + "\n"


def attacks_table() -> str:
    """Return a table of the registered attacks."""
    rows = ["| attack | what it does | source |", "|---|---|---|"]
    rows += [f"| `{attack.name}` | {attack.description} | {attack.source} |" for attack in list_attacks()]
    return "\n".join(rows) + "\n"


def tasks_table() -> str:
    """Return a table of the registered tasks with their facts."""
    rows = [
        "| task | marked by | questions | what it is | version | licence | paper | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in list_tasks():
        facts = task.facts
        counts = ", ".join(f"`@{split}` {count}" for split, count in facts.counts.items()) if facts else ""
        rest = (
            [f"`{task.version_of(task.splits[0])}`", facts.licence, facts.paper, facts.repository]
            if facts
            else [""] * 4
        )
        rows.append(f"| `{task.name}` | `{task.rule}` | {counts} | {task.description} | {' | '.join(rest)} |")
    return "\n".join(rows) + "\n"


TABLES = {
    "commands": commands_table,
    "methods": methods_table,
    "suites": suites_table,
    "tasks": tasks_table,
    "attacks": attacks_table,
}


def with_generated_tables(text: str) -> str:
    """Return the text with each generated block written anew."""
    return _BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + block[3], text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(with_generated_tables(document.read_text(encoding="utf-8")), encoding="utf-8")
