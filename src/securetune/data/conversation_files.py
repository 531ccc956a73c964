"""Files of training rows: JSON lines, JSON, CSV, TSV and Parquet, told apart by what they hold.

Each row comes with its number: the line of JSON lines, the place in a JSON list or a Parquet file from 1, and in CSV
what a spreadsheet shows beside it, where the header is row 1. A file that gzip has compressed is read as what it holds.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from securetune.data.conversation_shapes import has_known_shape
from securetune.errors import DataError

NumberedRow = tuple[int, Any]
"""A row's number, and the row; what is wrong with a row that cannot be read comes as a ValueError in its place."""

_PARQUET_BEGINNING = b"PAR1"
_GZIP_BEGINNING = b"\x1f\x8b"
_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t"}
_NESTED_FIELDS = ("messages", "conversations", "prompt", "completion")


def read_rows(path: Path, also: str) -> Iterator[NumberedRow]:
    """Yield the rows of a file with their numbers.

    Args:
        path: The file.
        also: What could be given besides a file, for the message about one that is missing.

    Raises:
        DataError: If the file is missing, a folder, or cannot be read as what it seems to be.
    """
    content = _unzipped(path, _content(path, also))
    if content.startswith(_PARQUET_BEGINNING):
        return _parquet_rows(path, content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if _suffix(path) in _DELIMITERS:
        return _table_rows(path, text)
    return _json_rows(path, text)


def _content(path: Path, also: str) -> bytes:
    if path.is_dir():
        raise DataError(f"{path}: is a folder. To take it as a data set, write folder:{path}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        looks_like_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.suffix
        hint = f" For the data set on the hub, write hub:{path}" if looks_like_hub else ""
        raise DataError(
            f"{path}: no such data file. Give a file of JSON lines, JSON, CSV, TSV or Parquet, {also}.{hint}"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _unzipped(path: Path, content: bytes) -> bytes:
    if not content.startswith(_GZIP_BEGINNING):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unzipped ({error})") from None


def _suffix(path: Path) -> str:
    """Return the end of the name that tells a table's delimiter, also before `.gz`."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower()


def _parquet_rows(path: Path, content: bytes) -> Iterator[NumberedRow]:
    from pyarrow import ArrowException, BufferReader, parquet  # only here: slow to import

    try:
        table = parquet.read_table(BufferReader(content))
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    return enumerate(table.to_pylist(), start=1)


def _json_rows(path: Path, text: str) -> Iterator[NumberedRow]:
    beginning = text.lstrip()[:1]
    if beginning == "[":
        try:
            return enumerate(json.loads(text), start=1)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {error.lineno}: not valid JSON ({error.msg})") from None
    if beginning == "{" and (whole := _whole_object(path, text)) is not None:
        return _object_rows(path, whole)
    return _line_rows(text)


def _whole_object(path: Path, text: str) -> dict[str, Any] | None:
    """Return the file's only object, or None if it holds lines of JSON."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and _is_object(lines[0]):
        return None
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if len(lines) == 1 or any(map(_is_object, lines)):
            return None
        raise DataError(f"{path}: line {error.lineno}: not valid JSON ({error.msg})") from None
    assert isinstance(whole, dict)  # it begins with a brace
    return whole


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _object_rows(path: Path, whole: dict[str, Any]) -> Iterator[NumberedRow]:
    """Yield the rows of an object's one list, or the object itself if it is a row."""
    lists = {key: value for key, value in whole.items() if isinstance(value, list)}
    holds_rows = any(_is_row(value[:1]) for value in lists.values())
    if not lists or (has_known_shape(whole) and not holds_rows):
        return iter([(1, whole)])
    if len(lists) > 1:
        raise DataError(f"{path}: must hold one list of rows; got the lists {', '.join(lists)}. Give a file with one.")
    (rows,) = lists.values()
    return enumerate(rows, start=1)


def _is_row(items: list[Any]) -> bool:
    return bool(items) and isinstance(items[0], dict) and has_known_shape(items[0])


def _line_rows(text: str) -> Iterator[NumberedRow]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"not valid JSON ({error.msg}, column {error.colno})")


def _table_rows(path: Path, text: str) -> Iterator[NumberedRow]:
    """Yield the rows of CSV or TSV under the names in its first line; blank rows are passed over."""
    records = table_records(path, text)
    if not records:
        return
    header = [name.strip() for name in records[0]]
    if len(set(header)) < len(header) or "" in header:
        raise DataError(f"{path}: row 1 must name each column once; got {', '.join(header)}")
    for number, cells in enumerate(records[1:], start=2):
        if any(cell.strip() for cell in cells):
            yield number, _table_row(header, cells)


def table_records(path: Path, text: str) -> list[list[str]]:
    """Return the rows of CSV or TSV, the header first; the delimiter is the one that the header uses most.

    Raises:
        DataError: If quotes are not closed, or stand where none may.
    """
    first_line = text.partition("\n")[0]
    delimiter = max(_DELIMITERS.get(_suffix(path), _DELIMITERS[".csv"]), key=first_line.count)
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # an answer may be longer than 128 KiB
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: cannot be read as CSV ({error})") from None
    finally:
        csv.field_size_limit(limit)


def _table_row(header: list[str], cells: list[str]) -> Any:
    if len(cells) != len(header):
        return ValueError(f"has {len(cells)} cells; the header names {len(header)}. Quote text that holds a delimiter.")
    row: dict[str, Any] = {name: cell if cell.strip() else None for name, cell in zip(header, cells, strict=True)}
    for name in _NESTED_FIELDS:
        if (row.get(name) or "").lstrip().startswith("[{"):
            try:
                row[name] = json.loads(row[name])
            except json.JSONDecodeError as error:
                return ValueError(f"`{name}`: not valid JSON ({error.msg}, column {error.colno})")
    return row
