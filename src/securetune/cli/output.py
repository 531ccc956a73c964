"""What goes to stdout: the result alone. Everything else, from us and from the libraries below, goes to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def printable(text: str) -> str:
    r"""Replace control and invisible formatting characters: a model's answer must not drive the terminal.

    Line breaks and tabs become spaces.

    Example:
        >>> printable("fine\x1b[2J, gone\n")
        'fine�[2J, gone '
    """
    return "".join(
        " " if character in "\n\t" else "\ufffd" if unicodedata.category(character) in _INVISIBLE else character
        for character in text
    )


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
