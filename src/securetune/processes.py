"""Several processes at one piece of work, as `torchrun` starts them: who does which part, and what all of them found.

Every process calls `gather` equally often and in the same order. One that fails tells the others so in place of what it
would have given, and all of them fail: none is left waiting for an answer that never comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

from securetune.errors import RunError

Item = TypeVar("Item")

_LONGEST_WAIT = timedelta(days=7)
"""How long a process waits for the others: as long as a sweep may take. `torchrun` ends all when one of them dies."""


class OtherProcessError(RunError):
    """Another process has failed, and this one ends because of it."""


@dataclass(frozen=True)
class _Failure:
    rank: int
    sentence: str


@dataclass(frozen=True)
class Processes:
    """The processes that share a piece of work; the default is this one alone.

    Attributes:
        rank: Number of this process, in [0, count).
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return every `count`-th item: those of this process."""
        return list(items[self.rank :: self.count])

    def gather(self, value: Item) -> list[Item]:
        """Return what all processes give, in the order of their ranks.

        Raises:
            OtherProcessError: If one of them failed instead.
        """
        if self.count == 1:
            return [value]
        found = self._exchange(value)
        failures = [item for item in found if isinstance(item, _Failure)]
        if failures:
            first = failures[0]
            raise OtherProcessError(f"process {first.rank} of {self.count} failed: {first.sentence}")
        return found

    def from_main(self, value: Item | None) -> Item:
        """Return what the main process gives; what the others give is not looked at."""
        found = [value]
        if self.count > 1:
            import torch

            torch.distributed.broadcast_object_list(found, src=0)
        return cast(Item, found[0])

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """If the body fails in one process, let it fail in all.

        Raises:
            OtherProcessError: If it failed in another process.
        """
        try:
            yield
            self.gather(None)
        except OtherProcessError:
            raise
        except Exception as error:
            if self.count > 1:
                self._exchange(_Failure(self.rank, f"{type(error).__name__}: {error}"))
            raise

    def _exchange(self, value: Any) -> list[Any]:
        import torch

        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found


@contextmanager
def launched_processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` or `accelerate launch` started together; without them, this one is alone.

    Example:
        >>> with launched_processes() as processes:
        ...     processes.share(["a", "b"])
        ['a', 'b']
    """
    if launched_count() == 1:
        yield Processes()
        return
    import torch

    # gloo, on a GPU as well: what is exchanged are a few numbers, in the memory of the CPU.
    torch.distributed.init_process_group("gloo", timeout=_LONGEST_WAIT)
    try:
        yield Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()


def joined_processes() -> Processes:
    """Return the processes that have joined already, as those of a trainer; without any, this one alone."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Processes()
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def launched_count() -> int:
    """Return how many processes were started together, before they have joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched_main() -> bool:
    """Tell whether this process is the one that prints, before the processes have joined."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Return the number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))
