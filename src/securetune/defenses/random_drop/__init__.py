"""A control: rows are dropped at random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from securetune.config import Settings
from securetune.data.conversations import Conversation
from securetune.defenses.data_defense import ChangedRows, DataContext
from securetune.defenses.registry import register_defense
from securetune.defenses.row_dropping import DropOptions, RowDrop


class RandomDropOptions(DropOptions):
    """Options of `random-drop`.

    Attributes:
        seed: Seed of the draw. It is the same for every training seed.
    """

    seed: int = 0


@register_defense("random-drop")
class RandomDrop(RowDrop):
    """Control: rows are dropped at random, which any choice of rows has to beat."""

    source = "control"
    purpose = "control"
    options_type: ClassVar[type[Settings]] = RandomDropOptions

    def change(self, rows: Sequence[Conversation], context: DataContext) -> ChangedRows:
        """Draw the rows that go."""
        assert isinstance(self.options, RandomDropOptions)
        count = len(rows) - self.rows_after(len(rows), context.model_name)
        return self.without(rows, random.Random(f"{self.name} {self.options.seed}").sample(range(len(rows)), count))
