"""How files are written so that half a file is never read, and how typed ones are read back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from securetune.artifacts.estimates import Artifact
from securetune.errors import ArtifactError
from securetune.untrusted_text import escaped_in_json

ArtifactType = TypeVar("ArtifactType", bound=Artifact)
RowType = TypeVar("RowType", bound=BaseModel)

_BY_HAND = "Was the file edited by hand?"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that `path` either keeps its old content or holds all of the new one."""
    os.replace(_write_beside(path, content), path)


def write_together(texts: Mapping[Path, str]) -> None:
    """Write several files that belong together: all of them in full beside, and then each under its name, in order.

    So a full disk or a kill while they are written leaves every old file. A kill within the renaming, which takes no
    time to speak of, leaves the first ones new and the last one old: put the file that speaks of the others last.
    """
    try:
        for path, text in texts.items():
            _write_beside(path, text.encode())
    except OSError:
        for path in texts:
            _beside(path).unlink(missing_ok=True)
        raise
    for path in texts:
        os.replace(_beside(path), path)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _write_beside(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return beside


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 so that `path` either keeps its old content or holds all of the new one."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Artifact | dict[str, Any] | list[Any]) -> None:
    """Write an artifact or plain JSON content atomically, indented, with a final line break."""
    write_text(path, json_text(content))


def json_text(content: Artifact | dict[str, Any] | list[Any]) -> str:
    """Return what `write_json` writes."""
    plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(row: Artifact | dict[str, Any]) -> str:
    """Return a row of a JSON-lines file, with its line break; safe to look at in a terminal, whatever text it holds."""
    plain = row.model_dump(mode="json") if isinstance(row, BaseModel) else row
    return escaped_in_json(json.dumps(plain, ensure_ascii=False)) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: If the file is missing or is not JSON.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a readable JSON file ({error})") from None


def _parsed(text: str) -> Any:
    """Parse JSON that is to be written again.

    Raises:
        ValueError: If it is none, or holds half of a character, which JSON can spell and UTF-8 cannot.
        RecursionError: If it is nested too deeply.
    """
    content = json.loads(text)
    if "\\ud" in text.lower():
        json.dumps(content, ensure_ascii=False).encode()
    return content


def read_artifact(path: Path, kind: type[ArtifactType]) -> ArtifactType:
    """Read a typed artifact.

    Raises:
        ArtifactError: If the file is missing, not JSON, or not an artifact of this kind and version.
    """
    content = read_json(path)
    wanted = kind.model_fields["format"].default if "format" in kind.model_fields else None
    found = content.get("format") if isinstance(content, dict) else None
    if wanted is not None and found != wanted:
        raise ArtifactError(f'{path}: must be a file of format "{wanted}"; got format {json.dumps(found)}')
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {place}: {first['msg']}. {_BY_HAND}") from None


def append_json_line(path: Path, row: Artifact | dict[str, Any]) -> None:
    """Append one row to a JSON-lines file and flush it; a row cut off by a kill is dropped by `read_json_lines`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_cut_off_line(path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_line(row))


def _drop_cut_off_line(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete rows of a JSON-lines file of our own; a last line that was cut off is left out.

    Raises:
        ArtifactError: If the file cannot be read, or a complete line is not a JSON object.
    """
    yield from (row for _, row in _numbered_rows(path))


def read_json_rows(path: Path, kind: type[RowType]) -> list[RowType]:
    """Read the complete rows of a JSON-lines file of our own, each of them typed.

    Raises:
        ArtifactError: As `read_json_lines`; or if a row is not of this kind, with its line and the field.
    """
    rows = []
    for number, row in _numbered_rows(path):
        try:
            rows.append(kind.model_validate(row))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(f"{path}: line {number}: {place}: {first['msg']}. {_BY_HAND}") from None
    return rows


def _numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        if not path.exists():
            return
        # By bytes: a text file would be decoded in blocks, and a bad byte could not be said to be in a line.
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n") and line.strip():
                    yield number, _row(path, number, line)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = _parsed(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ArtifactError(f"{path}: line {number} is not UTF-8 text. {_BY_HAND}") from None
    except UnicodeEncodeError:
        raise ArtifactError(f"{path}: line {number} holds half of a character (a lone surrogate). {_BY_HAND}") from None
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path}: line {number} is not JSON. {_BY_HAND}") from None
    if not isinstance(row, dict):
        raise ArtifactError(f"{path}: line {number} must be a JSON object; got {type(row).__name__}. {_BY_HAND}")
    return row
