"""What goes to stdout: the result alone. Everything else, from us and from the libraries below, goes to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from securetune.untrusted_text import without_control_characters

if TYPE_CHECKING:
    from rich.table import Table


def printable(text: str) -> str:
    """Return text of a user's or a model's as one line that cannot drive the terminal."""
    return " ".join(without_control_characters(text).split())


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send to stderr what a stage prints, such as the training log that transformers writes with `print`."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(document: Any) -> None:
    """Print one JSON document; everything outside ASCII is escaped, so that no text in it can drive a terminal."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_table(table: Table) -> None:
    """Print a table; into a file or a pipe it is as wide as it needs to be."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=200)
    console.print(table)
