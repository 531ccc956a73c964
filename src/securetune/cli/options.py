"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Set any setting by its path in the YAML, such as training.max_steps=100 (repeatable).",
    ),
]
Harmful = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Harmful requests: a file (text, one a line, or JSON lines with `prompt` or `messages`), "
        "hub:owner/name[:split[:column]] or folder:PATH of a data set. Left out: built-in ones.",
    ),
]
Harmless = Annotated[str | None, typer.Option(metavar="SOURCE", help="Harmless requests, in the same forms.")]
