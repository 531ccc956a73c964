"""Files of published suites and tasks: facts about each, where it is looked for, and how its rows are read.

The package holds none of the data. A file is read from what the user names (`advbench=PATH`, a file or a folder;
`advbench=hub:owner/name`; or `advbench=folder:PATH` for what the `datasets` library saved), or from the data folder:
the setting `evaluation.data_dir`, else the environment variable `SECURETUNE_DATA`. Nothing is ever downloaded that was
not named with `hub:`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from securetune.data.data_sets import names_data_set, read_data_set_rows
from securetune.data.prompts import Prompt
from securetune.errors import DataError
from securetune.evaluation.upstream_files import Row, shown_names

DATA_VARIABLE = "SECURETUNE_DATA"
_HUB = "hub:"


@dataclass(frozen=True)
class SuiteFacts:
    """What is to be known of a suite, or of a task, before using it.

    Attributes:
        version: Raised when the same file would give other prompts.
        counts: Split → number of prompts, as published.
        licence: Of the prompts.
        paper: Where it is described.
        repository: Where its file comes from.
    """

    version: str
    counts: Mapping[str, int]
    licence: str
    paper: str
    repository: str


@runtime_checkable
class LoadsFromFile(Protocol):
    """What a suite or task has whose prompts are not part of this package."""

    def load(self, split: str, location: str | None = None, data_dir: str | None = None) -> list[Prompt]:
        """Read the prompts of a split from a file, a folder or a hub name, or find them in the data folder."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file that the user has, or a data set of the same rows.

    Attributes:
        what: What it is a file of, in messages.
        name: What the user types.
        facts: Version, counts, licence and source.
        files: Where it is looked for in a folder, relative; the first is what a message names.
        form: What the file looks like, in a few words.
        read: File → rows.
        columns: Groups of alternatives; a row must have one of each. Of the first group is the request's column.
        folder_files: Pattern of the files in a folder that is read as a whole, or None.
        hub: Name on the hub, with a pinned revision where we know one, or None.
        no_hub: Why its rows cannot come from a data set, as a sentence; or None if they can.
    """

    what: Literal["suite", "task"] = "suite"
    name: str
    facts: SuiteFacts
    files: tuple[str, ...]
    form: str
    read: Callable[[Path], list[Row]]
    columns: tuple[tuple[str, ...], ...] = (("prompt",),)
    folder_files: str | None = None
    hub: str | None = None
    no_hub: str | None = None

    def read_rows(self, location: str | None = None, data_dir: str | None = None) -> tuple[str, list[Row]]:
        """Find the file and read its rows.

        Args:
            location: File, folder or name of a data set; None looks into the data folder.
            data_dir: The data folder; None takes the environment's.

        Returns:
            What was read, for messages, and its rows, at least one, all columns there in the first.

        Raises:
            DataError: If the file is not found or has another shape.
        """
        if location is not None and names_data_set(location):
            source = self._data_set_name(location)
            rows = read_data_set_rows(source)
        else:
            path = self._find(location, data_dir)
            source, rows = str(path), self.read(path)
        self._require_columns(source, rows)
        return source, rows

    def column_of(self, row: Row, group: int = 0) -> str:
        """Return which of a group's alternatives a row has."""
        return next(name for name in self.columns[group] if name in row)

    def warn_of_count(self, source: str, count: int, published: int) -> None:
        """Warn where a file has more or fewer prompts than the published one."""
        if count != published:
            warnings.warn(
                f'{source}: {count} prompts for the {self.what} "{self.name}", whose published file has {published}: '
                "scores are not comparable with published ones",
                stacklevel=4,
            )

    @property
    def where_to_get_it(self) -> str:
        """One sentence for a user who does not have the file."""
        hub = "" if self.hub is None else f" (or {self.name}=hub: for {self.hub})"
        return (
            f"Get it from {self.facts.repository} (licence: {self.facts.licence}) and give {self.name}=PATH{hub}, "
            f"or set evaluation.data_dir or {DATA_VARIABLE} to a folder that holds {self.files[0]}."
        )

    def _data_set_name(self, location: str) -> str:
        if self.no_hub is not None:
            raise DataError(f'{self.what} "{self.name}": {self.no_hub}')
        if location != _HUB:
            return location
        if self.hub is None:
            raise DataError(
                f'{self.what} "{self.name}": no hub name is known for it. Give {self.name}=hub:owner/name:split'
            )
        return _HUB + self.hub

    def _find(self, location: str | None, data_dir: str | None) -> Path:
        if location is not None:
            path = Path(location).expanduser()
            if not path.exists():
                raise DataError(
                    f'{self.what} "{self.name}": {location}: no such file or folder. {self.where_to_get_it}'
                )
            if not path.is_dir() or self._is_there(path):
                return path
            folder = path
        else:
            folder = self._data_folder(data_dir)
        for name in dict.fromkeys([*self.files, *(Path(file).name for file in self.files)]):
            if self._is_there(folder / name):
                return folder / name
        looked = " or ".join(self.files)
        raise DataError(f'{self.what} "{self.name}": {folder} has no {looked}. {self.where_to_get_it}')

    def _data_folder(self, data_dir: str | None) -> Path:
        named = data_dir or os.environ.get(DATA_VARIABLE)
        if not named:
            raise DataError(
                f'{self.what} "{self.name}": its file is needed, but no data folder is named. {self.where_to_get_it}'
            )
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise DataError(f'{self.what} "{self.name}": the data folder {named} is no folder. {self.where_to_get_it}')
        return folder

    def _is_there(self, path: Path) -> bool:
        holds_files = self.folder_files is not None and path.is_dir() and any(path.glob(self.folder_files))
        return path.is_file() or holds_files

    def _require_columns(self, source: str, rows: Sequence[Row]) -> None:
        if not rows:
            raise DataError(f"{source}: must hold at least one prompt; got none")
        found = list(rows[0])
        if not all(any(name in found for name in group) for group in self.columns):
            needed = ", ".join(" or ".join(group) for group in self.columns)
            raise DataError(
                f'{source}: the {self.what} "{self.name}" needs the columns {needed}; '
                f"found {shown_names(found) or 'none'}. Its file is {self.form}."
            )
