"""Published suites: how the rows of a file become prompts, and which of them a split takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from securetune.data.prompt_rows import prompt_from_text, text_problem, usable_rows
from securetune.data.prompts import Prompt
from securetune.errors import DataError
from securetune.evaluation.published_files import DATA_VARIABLE, PublishedFile
from securetune.evaluation.suites.selection import Selection, everything
from securetune.evaluation.suites.suite import RegisteredSuite, SuiteKind, register_suite
from securetune.evaluation.upstream_files import Row

__all__ = ["DATA_VARIABLE", "PublishedSuite", "register_published"]


@dataclass(frozen=True, kw_only=True)
class PublishedSuite(PublishedFile):
    """A suite whose file the user has; see `PublishedFile` for the rest of its attributes.

    Attributes:
        title: What it holds, in a few words.
        kind: `harmful` or `harmless`.
        selections: Split → which prompts, the default first.
        keeps: Row → whether it belongs to the suite, or what is wrong with it.
        renamed: Column → name in the metadata, where it is not the column's in lower case.
        left_out: Columns that do not go into the metadata.
        wrapper: What the prompts are an attack of, or None for plain requests.
    """

    title: str
    kind: SuiteKind
    selections: Mapping[str, Selection] = field(default_factory=lambda: {"full": everything})
    keeps: Callable[[Row], bool | str] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    wrapper: str | None = None

    def load(self, split: str, location: str | None = None, data_dir: str | None = None) -> list[Prompt]:
        """Read the prompts of a split.

        Args:
            split: Name of a selection.
            location: File, folder or hub name; None looks into the data folder.
            data_dir: The data folder; None takes the environment's.

        Raises:
            DataError: If the file is not found, has another shape, or holds rows that are no prompts.
        """
        source, rows = self.read_rows(location, data_dir)
        prompts = self._prompts(source, rows)
        self.warn_of_count(source, len(prompts), max(self.facts.counts.values()))
        selected = self.selections[split](prompts)
        _warn_of_repetitions(source, selected)
        return selected

    def _prompts(self, source: str, rows: Sequence[Row]) -> list[Prompt]:
        read = {number: self._prompt(number, row) for number, row in enumerate(rows, start=1)}
        kept = {number: prompt for number, prompt in read.items() if prompt is not None}
        if not kept:
            raise DataError(f'{source}: must hold at least one prompt of the suite "{self.name}"; got none')
        return list(usable_rows(source, kept).values())

    def _prompt(self, number: int, row: Row) -> Prompt | str | None:
        kept = True if self.keeps is None else self.keeps(row)
        if not kept:
            return None
        column = self.column_of(row)
        problem = kept if isinstance(kept, str) else text_problem(row[column])
        if problem:
            return f"`{column}` {problem}" if kept is True else problem
        text = row[column].strip()
        more = {
            self.renamed.get(name, name.lower()): value
            for name, value in row.items()
            if value and name not in (column, *self.left_out)
        }
        return prompt_from_text(f"{self.name}:{number}", text, {**more, "behavior": text})


def _warn_of_repetitions(source: str, prompts: Sequence[Prompt]) -> None:
    repeated = len(prompts) - len({prompt.words for prompt in prompts})
    if repeated:
        warnings.warn(
            f"{source}: {repeated} of {len(prompts)} prompts repeat an earlier one; they are kept, since published "
            "scores count them",
            stacklevel=3,
        )


def register_published(suite: PublishedSuite) -> PublishedSuite:
    """Make a published suite available by name.

    Raises:
        ValueError: If the name is taken.
    """
    register_suite(
        RegisteredSuite(
            suite.name,
            f"{suite.title}.",
            suite.kind,
            suite.wrapper,
            tuple(suite.selections),
            partial(suite.load),
            suite.facts,
            suite,
        )
    )
    return suite
