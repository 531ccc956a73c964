"""The command line: one command a file, each a thin caller of the public function of the same purpose.

A command's body imports what it needs, so that `--help` waits for nothing: torch alone takes two seconds.
"""

from securetune.cli.application import app, main

__all__ = ["app", "main"]
