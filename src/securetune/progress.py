"""How long work tells how far it is: one callback for a stage, one observer for a whole run.

The command line draws bars with them; a worker process sends them on to its parent; a test records them.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable  # the type checks that the tests switch on need it
@runtime_checkable
class ProgressCallback(Protocol):
    """Called from time to time by a stage."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell that `done` of `total` pieces of `what` are finished.

        Args:
            what: What is being done, in a few words, such as `warm-up phase` or `tiny-world-harmful`.
            done: Pieces finished, in [0, total].
            total: Pieces in all; 0 if it is not known.
        """


def silent(what: str, done: int, total: int) -> None:
    """Show nothing: the default of every public function."""


class RunObserver:
    """Is told of everything that happens in a run. This one shows nothing; a display overrides what it shows.

    Stages are named as in `run.json`: `start`, `analysis`, `search`, `data/<defenses>`, `methods/<label>/seed-<n>`,
    `report`.
    """

    def run_began(self, complete: int, total: int) -> None:
        """Hear that the checks are done, and that `complete` of `total` stages were found complete."""

    def stage_began(self, name: str) -> None:
        """Hear that a stage began."""

    def stage_progressed(self, name: str, what: str, done: int, total: int) -> None:
        """Hear that a stage has done `done` of `total` pieces of `what`; `total` is 0 if unknown."""

    def stage_ended(self, name: str, seconds: float, error: str | None) -> None:
        """Hear that a stage ended, after how many seconds since it began, and why it failed if it did."""
