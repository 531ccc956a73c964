"""How files are written so that half a file is never read, and how typed ones are read back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from securetune.artifacts.estimates import Artifact
from securetune.errors import ArtifactError

ArtifactType = TypeVar("ArtifactType", bound=Artifact)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that `path` either keeps its old content or holds all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 so that `path` either keeps its old content or holds all of the new one."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Artifact | dict[str, Any] | list[Any]) -> None:
    """Write an artifact or plain JSON content atomically, indented, with a final line break."""
    plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
    write_text(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: not a readable JSON file ({error})") from None


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
        raise ArtifactError(f"{path}: {place}: {first['msg']}. Was the file edited by hand?") from None


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Append one row to a JSON-lines file and flush it; a row cut off by a kill is dropped by `read_json_lines`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_cut_off_line(path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


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
        ArtifactError: If a complete line is not JSON.
    """
    if not path.exists():
        return
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n") and line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    raise ArtifactError(f"{path}: line {number} is not JSON. Was the file edited by hand?") from None
