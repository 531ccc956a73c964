"""What drops training rows has in common: how many."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from securetune.config import Fraction, Settings
from securetune.data.conversations import Conversation
from securetune.defenses.data_defense import ChangedRows, DataDefense
from securetune.errors import ConfigError


class DropOptions(Settings):
    """Options of what drops rows.

    Attributes:
        drop_fraction: Share of the rows to drop, in [0, 1], rounded to whole rows; 0 leaves the data as they are. Where
            neither this nor `drop_count` is given, 0.1: enough to see an effect, and little data lost.
        drop_count: Instead: how many rows to drop (≥ 0).
    """

    drop_fraction: Fraction | None = None
    drop_count: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _says_it_once(self) -> DropOptions:
        if self.drop_fraction is not None and self.drop_count is not None:
            raise ValueError("drop_fraction and drop_count say the same; give one of them")
        return self


class RowDrop(DataDefense):
    """Drops rows, and keeps the order of the others."""

    options_type: ClassVar[type[Settings]] = DropOptions
    default_fraction: ClassVar[float] = 0.1

    def dropped(self, rows: int) -> int:
        """Return how many of this many rows go."""
        assert isinstance(self.options, DropOptions)
        if self.options.drop_count is not None:
            return self.options.drop_count
        fraction = self.options.drop_fraction
        return round(rows * (self.default_fraction if fraction is None else fraction))

    def rows_after(self, rows: int, model_name: str) -> int:
        """Return the rows that are left, at least one."""
        left = rows - self.dropped(rows)
        if left < 1:
            raise ConfigError(
                f"{self.name}: drops {self.dropped(rows):,} of {rows:,} rows, so that none is left to train on. Give a "
                "smaller drop_fraction or drop_count."
            )
        return left

    def without(
        self,
        rows: Sequence[Conversation],
        gone: Collection[int],
        scores: tuple[float | None, ...] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> ChangedRows:
        """Return the rows but those at some places."""
        places = frozenset(gone)
        kept = [row for place, row in enumerate(rows) if place not in places]
        return ChangedRows(kept, dropped=tuple(sorted(places)), scores=scores, facts=facts or {})
