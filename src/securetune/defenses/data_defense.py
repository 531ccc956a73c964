"""Defenses on the training data: rows are added or dropped before the training begins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from securetune.config import ModelSettings, validate
from securetune.data.conversations import Conversation
from securetune.data.prompts import Prompt
from securetune.defenses.base import Defense
from securetune.models import ChatModel
from securetune.progress import ProgressCallback, silent


@dataclass(frozen=True)
class DataContext:
    """What a defense on the data may know when it acts.

    Attributes:
        model_name: The start model's name as the user gave it.
        load: Returns the start model; its weights are loaded when it is first asked for.
        progress: Told how far it is.
    """

    model_name: str
    load: Callable[[], ChatModel]
    progress: ProgressCallback = silent


@dataclass(frozen=True)
class ChangedRows:
    """Training rows as a defense leaves them.

    Attributes:
        conversations: The rows.
        added: How many of them are new; they stand at the end, and the trainer shuffles.
        dropped: Places of the rows that are gone, in the list that came in.
        scores: Row that came in → its score, if the defense gives one; None for a row that has none.
        facts: What else a reader should know, such as a layer or the hash of a file.
    """

    conversations: Sequence[Conversation]
    added: int = 0
    dropped: tuple[int, ...] = ()
    scores: tuple[float | None, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class DataDefense(Defense, ABC):
    """Base of the defenses on the data.

    What one does depends on its options, the rows and the start model alone, not on the seed of the training: all seeds
    see one data set, as with a file.

    Attributes:
        needs_model: Whether it looks at the start model's weights.
    """

    stage: ClassVar[Literal["data", "training", "weights", "generation"]] = "data"
    needs_model: ClassVar[bool] = False

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = validate(self.options_type, dict(options or {}), at=self.name)

    def check(self, model: ModelSettings) -> None:
        """Find out whether all that it reads is there and fits the model, before anything begins.

        Args:
            model: The start model.

        Raises:
            InputError: With every mistake found.
        """

    @abstractmethod
    def rows_after(self, rows: int, model_name: str) -> int:
        """Return how many rows it leaves of this many; known before any is looked at.

        Raises:
            InputError: If it cannot do what its options ask for with this many.
        """

    def read_hash(self, model_name: str) -> str | None:
        """Return a hash of what it reads besides the rows and the model, or None if that is nothing."""
        return None

    @abstractmethod
    def change(self, rows: Sequence[Conversation], context: DataContext) -> ChangedRows:
        """Add or drop rows.

        Args:
            rows: As the data, or the defense before this one, has them.
            context: The start model.
        """

    def preview(self, rows: Sequence[Conversation], context: DataContext) -> ChangedRows:
        """Return rows of the same number without the model's weights, for a plan."""
        return self.change(rows, context)

    def prompts_used(self, model_name: str) -> Sequence[Prompt]:
        """Return the prompts that it may add to the data, or looks at, so that nobody reports on them."""
        return ()
