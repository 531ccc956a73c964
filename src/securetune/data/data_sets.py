"""Rows and prompts of a data set: one on the Hugging Face hub, or a folder that the `datasets` library can read.

A data set is named in one of these ways; what stands in brackets may be left out:

- `hub:owner/name[@revision][#configuration][:split[:column]]`
- `folder:path[#configuration][:split[:column]]`: what `save_to_disk` wrote, or a folder of Parquet, CSV, JSON lines or
  text files

The split may be left out if there is one only; the column if it is called `prompt` or `messages`. An empty split stands
for the only one, as in `hub:owner/name::goal`. Training takes whole rows, so no column is named there. A split may
end with the rows that are taken, counted from 0: `train[:1000]` the first thousand, `train[1000:]` the others,
`train[1000:1500]`. No code of a data set is ever run: the library has no loading scripts.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from securetune.data.prompt_rows import Prompt, prompt_from_row, usable_rows
from securetune.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

FORMS = "hub:owner/name[@revision][#configuration][:split[:column]] or folder:path[#configuration][:split[:column]]"

_PREFIXES = ("hub:", "folder:")
_PARTS = re.compile(
    r"(?P<name>[^#:]+)(?:#(?P<configuration>[^:]+))?(?::(?P<split>[^:\[]*(?:\[[^\]]*\])?))?(?::(?P<column>.+))?"
)
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@]+))?")
_SLICE = re.compile(r"(?P<split>[^\[\]]*)\[(?P<first>\d*):(?P<end>\d*)\]")
_USUAL_COLUMNS = ("messages", "prompt")


class DataSetName(NamedTuple):
    """What a user named.

    Attributes:
        source: As it was typed, for messages.
        location: Folder, or `owner/name`.
        is_hub: Whether it is on the hub.
        revision: Hub revision, or None.
        configuration: Name of one of its configurations, or None.
        split: Name of a split, or None for the only one.
        rows: Which of its rows.
        column: Name of a column, or None for `messages` or `prompt`.
    """

    source: str
    location: str
    is_hub: bool
    revision: str | None
    configuration: str | None
    split: str | None
    rows: slice
    column: str | None


def names_data_set(source: str) -> bool:
    """Tell whether a source of prompts is named as a data set and not as a file."""
    return source.startswith(_PREFIXES)


def read_data_set(source: str) -> list[Prompt]:
    """Read the prompts of a data set: a column of texts, or of conversations that end with the user.

    Raises:
        DataError: If the name has another form; if there is no such data set, configuration, split or column (what
            there is is listed); if the hub cannot be reached and the set was never downloaded; if it needs a program to
            be read; if a row holds no prompt (all bad rows are named).
    """
    name = _parse(source)
    split, rows = _choose_split(name, _load(name))
    column = _choose_column(name, split, rows.column_names)
    values = list(rows[column])
    if not values:
        raise DataError(f"{source}: must hold at least one prompt; got no rows")
    field = "messages" if isinstance(values[0], list) else "prompt"
    prefix = f"{name.location}:{split}" if split else name.location
    prompts = {
        number: prompt_from_row({field: value}, default_id=f"{prefix}:{number}")
        for number, value in enumerate(values, start=1)
    }
    return list(usable_rows(source, prompts).values())


def read_data_set_rows(source: str) -> list[dict[str, Any]]:
    """Read whole rows of a data set, each with all its columns.

    Raises:
        DataError: As `read_data_set` does, but for the column; or if a column is named.
    """
    name = _parse(source)
    if name.column is not None:
        raise DataError(f"{source}: training takes whole rows, so no column is named. Leave out :{name.column}")
    rows: list[dict[str, Any]] = _choose_split(name, _load(name))[1].to_list()
    return rows


def _parse(source: str) -> DataSetName:
    prefix, _, rest = source.partition(":")
    is_hub = prefix == "hub"
    if not is_hub and rest and Path(rest).expanduser().is_dir():  # its name may hold any of the separators
        return DataSetName(source, rest, False, None, None, None, slice(None), None)
    parts = _PARTS.fullmatch(rest)
    if parts is None:
        raise DataError(f"{source}: a data set must be named as {FORMS}")
    location, revision = parts["name"], None
    if is_hub:
        hub_name = _HUB_NAME.fullmatch(location)
        if hub_name is None:
            raise DataError(f'{source}: a data set on the hub must be named owner/name; got "{location}"')
        location, revision = hub_name["name"], hub_name["revision"]
    split, rows = _split_and_rows(source, parts["split"] or "")
    return DataSetName(source, location, is_hub, revision, parts["configuration"], split, rows, parts["column"])


def _split_and_rows(source: str, text: str) -> tuple[str | None, slice]:
    """Take `split[first:end]` apart."""
    found = _SLICE.fullmatch(text)
    if found is None and "[" in text:
        raise DataError(f'{source}: rows of a split must be named as in train[:1000] or train[1000:]; got "{text}"')
    if found is None:
        return text or None, slice(None)
    first, end = (int(found[name]) if found[name] else None for name in ("first", "end"))
    return found["split"] or None, slice(first, end)


def _load(name: DataSetName) -> dict[str, Dataset]:
    """Return the data set by split; the split of a single saved one has no name.

    Raises:
        DataError: If it cannot be read.
    """
    if not name.is_hub and not Path(name.location).expanduser().is_dir():
        raise DataError(f"{name.source}: no such folder")
    import datasets  # only here: slow to import

    is_out_of_reach = name.is_hub and not _hub_answers(name)
    try:
        with _quietly(datasets, offline=is_out_of_reach):
            found = _load_from_hub(datasets, name) if name.is_hub else _load_from_folder(datasets, name)
    except DataError:
        raise
    except Exception as error:  # what is wrong with a set surfaces as many different exceptions
        raise DataError(f"{name.source}: {_what_is_wrong(datasets, error, name, is_out_of_reach)}") from None
    return {"": found} if isinstance(found, datasets.Dataset) else dict(found)


def _load_from_hub(datasets: Any, name: DataSetName) -> Any:
    from datasets.packaged_modules.cache.cache import Cache

    # With this prefix a folder of the same name in the current one is not taken for it.
    location = f"hf://datasets/{name.location}"
    builder = datasets.load_dataset_builder(location, name.configuration, revision=name.revision)
    if isinstance(builder, Cache):  # the library falls back on any version that it has, whatever was asked for
        if name.revision:
            raise DataError(
                f"{name.source}: the hub cannot be reached, or has no revision {name.revision}, and what was "
                f"downloaded earlier may be another one. Leave out @{name.revision} to take it."
            )
        warnings.warn(f"{name.source}: the hub does not give it now; taken is what was downloaded last", stacklevel=2)
    builder.download_and_prepare()
    return builder.as_dataset()


def _load_from_folder(datasets: Any, name: DataSetName) -> Any:
    folder = Path(name.location).expanduser().resolve()
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        if name.configuration:
            raise ValueError("a saved data set has no configurations")
        return datasets.load_from_disk(str(folder))
    return datasets.load_dataset(str(folder), name.configuration)


def _hub_answers(name: DataSetName) -> bool:
    from securetune.models.checks import hub_answers  # only here: slow to import

    return hub_answers(f"datasets/{name.location}")


@contextmanager
def _quietly(datasets: Any, offline: bool) -> Iterator[None]:
    """Keep the library's bars and messages off the terminal; without a network, have it look into its cache at once.

    It would otherwise try the hub again for half a minute first.
    """
    verbosity, was_offline = datasets.logging.get_verbosity(), datasets.config.HF_HUB_OFFLINE
    had_bars = datasets.is_progress_bar_enabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = was_offline or offline
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        datasets.config.HF_HUB_OFFLINE = was_offline
        if had_bars:
            datasets.enable_progress_bars()


def _what_is_wrong(datasets: Any, error: Exception, name: DataSetName, is_out_of_reach: bool) -> str:
    if is_out_of_reach:
        return "not among the downloaded data sets, and the hub cannot be reached"
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        what = f"no data set {name.location}" + (f" of revision {name.revision}" if name.revision else "")
        return f"the hub has {what}, or gives no access to it"
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in str(error):
        return "can be read by a program of its own only, and no such program is run. Give Parquet, CSV or JSON lines."
    configurations = _configurations(datasets, name) if isinstance(error, ValueError) else []
    if len(configurations) > 1 and name.configuration is None:
        listed, example = ", ".join(configurations), f"{name.source.partition(':')[0]}:{name.location}"
        return f"has several configurations: {listed}. Name one, such as {example}#{configurations[0]}"
    if configurations and name.configuration not in configurations:
        return f'has no configuration "{name.configuration}"; it has {", ".join(configurations)}'
    cause = error.__cause__ or error
    return f"cannot be read ({(str(cause).strip().splitlines() or [type(cause).__name__])[0]})"


def _configurations(datasets: Any, name: DataSetName) -> list[str]:
    location = f"hf://datasets/{name.location}" if name.is_hub else str(Path(name.location).expanduser().resolve())
    try:
        with _quietly(datasets, offline=False):
            return list(datasets.get_dataset_config_names(location, revision=name.revision))
    except Exception:  # then the error that made us ask is told as it is
        return []


def _choose_split(name: DataSetName, splits: dict[str, Dataset]) -> tuple[str, Dataset]:
    if name.split is None and len(splits) == 1:
        split, found = next(iter(splits.items()))
        return split, _sliced(found, name)
    if name.split in splits:
        return name.split, _sliced(splits[name.split], name)
    listed = ", ".join(split for split in splits if split)
    if name.split is None:
        example = _with(name, next(iter(splits)))
        raise DataError(f"{name.source}: has several splits: {listed}. Name one, such as {example}")
    raise DataError(f'{name.source}: has no split "{name.split}"; it has {listed or "none"}')


def _sliced(found: Dataset, name: DataSetName) -> Dataset:
    if name.rows == slice(None):
        return found
    chosen = range(len(found))[name.rows]
    if (name.rows.stop or 0) > len(found) or not chosen:
        raise DataError(f"{name.source}: the split has {len(found)} rows; not all that are asked for are there")
    return found.select(chosen)


def _choose_column(name: DataSetName, split: str, columns: Sequence[str]) -> str:
    listed = ", ".join(columns)
    if name.column is None:
        usual = [column for column in _USUAL_COLUMNS if column in columns]
        if usual:
            return usual[0]
        raise DataError(
            f'{name.source}: has no column "prompt" or "messages"; it has {listed}. '
            f"Name one, such as {_with(name, f'{split}:{columns[0]}')}"
        )
    if name.column in columns:
        return name.column
    near = difflib.get_close_matches(name.column, columns, n=1)
    hint = f'. Did you mean "{near[0]}"?' if near else ""
    raise DataError(f'{name.source}: has no column "{name.column}"; it has {listed}{hint}')


def _with(name: DataSetName, split_and_column: str) -> str:
    """Name the same data set with another split, and column."""
    return (
        ("hub:" if name.is_hub else "folder:")
        + name.location
        + (f"@{name.revision}" if name.revision else "")
        + (f"#{name.configuration}" if name.configuration else "")
        + f":{split_and_column}"
    )
