"""What adds samples to the training data has in common: how many, out of which, and drawn how."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from securetune.config import ModelSettings, Settings
from securetune.data.conversations import (
    Conversation,
    conversations_hash,
    read_conversations,
    shown_sources,
    training_sources,
)
from securetune.data.prompt_rows import prompt_from_text
from securetune.data.prompts import Prompt
from securetune.defenses.data_defense import ChangedRows, DataContext, DataDefense
from securetune.errors import ConfigError, DataError

BUILT_IN = "built in"


class MixOptions(Settings):
    """Options of what adds samples.

    Attributes:
        count: Samples to add (≥ 0); 0 leaves the data as they are.
        share: Instead of `count`: share of the resulting data, in [0, 1), that the samples are.
        samples: Conversations to draw from, as `data` names them: a file, `hub:owner/name[:split]` or `folder:PATH`.
            None: the built-in ones.
        seed: Seed of the draw (without replacement). It is the same for every training seed.
    """

    count: Annotated[int, Field(ge=0)] | None = None
    share: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    samples: str | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _says_it_once(self) -> MixOptions:
        if self.count is not None and self.share is not None:
            raise ValueError("count and share say the same; give one of them")
        return self


class SampleMix(DataDefense):
    """Adds samples, drawn without replacement, behind the rows that are there.

    Attributes:
        default_count: Samples where neither `count` nor `share` is given.
    """

    options_type: ClassVar[type[Settings]] = MixOptions
    default_count: ClassVar[int]

    @property
    def own(self) -> MixOptions:
        """The options, with their type."""
        assert isinstance(self.options, MixOptions)
        return self.options

    @abstractmethod
    def built_in_samples(self, model_name: str) -> list[Conversation]:
        """Return the samples that ship with the package.

        Raises:
            ConfigError: If there are none for this model.
        """

    def check(self, model: ModelSettings) -> None:
        """Read the samples."""
        self.samples(model.name)

    def samples(self, model_name: str) -> Sequence[Conversation]:
        """Return what is drawn from.

        Raises:
            InputError: If it cannot be read, or there is nothing built in for this model.
        """
        try:
            if self.own.samples is not None:
                return _read(self.own.samples, _changed_at(self.own.samples))
            return self.built_in_samples(model_name)
        except DataError as error:
            raise DataError([f"{self.name}: samples: {problem}" for problem in error.problems]) from None

    def added(self, rows: int) -> int:
        """Return how many samples join this many rows."""
        if self.own.share is not None:
            return round(rows * self.own.share / (1 - self.own.share))
        return self.default_count if self.own.count is None else self.own.count

    def rows_after(self, rows: int, model_name: str) -> int:
        """Return the rows and the samples."""
        wanted, available = self.added(rows), len(self.samples(model_name))
        if wanted > available:
            raise ConfigError(
                f"{self.name}: adds {wanted:,} samples to {rows:,} rows, but {self._source} hold {available:,}. Give a "
                "smaller count or share, or `samples` with more."
            )
        return rows + wanted

    @property
    def _source(self) -> str:
        return "the built-in ones" if self.own.samples is None else self.own.samples

    def read_hash(self, model_name: str) -> str | None:
        """Return the hash of the samples."""
        return conversations_hash(self.samples(model_name))

    def prompts_used(self, model_name: str) -> Sequence[Prompt]:
        """Return the requests of all samples: which of them are drawn depends on the data."""
        texts = dict.fromkeys(
            message["content"]
            for sample in self.samples(model_name)
            for message in sample["messages"]
            if message["role"] == "user"
        )
        return [prompt_from_text(f"{self.name}:{place}", text) for place, text in enumerate(texts, start=1)]

    def change(self, rows: Sequence[Conversation], context: DataContext) -> ChangedRows:
        """Draw, and put the samples behind the rows."""
        pool = self.samples(context.model_name)
        wanted = self.rows_after(len(rows), context.model_name) - len(rows)
        drawn = random.Random(f"{self.name} {self.own.seed}").sample(pool, wanted)
        source = BUILT_IN if self.own.samples is None else shown_sources(self.own.samples)
        facts = {"samples": source, "samples_hash": conversations_hash(pool), "samples_available": len(pool)}
        return ChangedRows([*rows, *drawn], added=wanted, facts=facts)


def _changed_at(samples: str) -> tuple[int, ...]:
    """Return what tells changed files from those that were read before."""
    files = (Path(source) for source in training_sources(samples))
    return tuple(path.stat().st_mtime_ns for path in files if path.is_file())


@lru_cache(maxsize=4)
def _read(samples: str, changed_at: tuple[int, ...]) -> tuple[Conversation, ...]:
    """Read the samples once for all the questions that are asked about them."""
    return tuple(read_conversations(samples))
