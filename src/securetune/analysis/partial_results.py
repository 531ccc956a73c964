"""What a pass over the modules has finished, kept in files, so that an analysis that was killed goes on from there.

Each pass has a file of its own, named by a hash of everything that its numbers depend on. A file that was made with
anything else has another name or another hash inside, and is not read; one that cannot be read counts as absent.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from securetune.artifacts import write_bytes

_FORMAT = "securetune-partial-results-2"
"""Changes with the meaning of what is kept; part of every key, so that files of another version are left alone."""

_SECONDS_BETWEEN_WRITES = 5.0
"""What a kill may cost. Some 4 MiB (32 layers, 8 seeds, 128 prompts) are written whole in about 20 ms: below 1 %."""

_SAMPLED_VALUES = 65536
"""Values of a tensor that go into a hash: all of a classifier's, a sample of a weight update's, whose file is as large
as the model."""

Values = Mapping[str, Tensor]
"""What was measured of one module: name → values."""


class PartialResults:
    """The finished modules of one pass, as a context manager that writes what it holds when it is left.

    Args:
        folder: Where the files lie; None keeps nothing.
        key: Of `key_of`; None keeps nothing, because nobody could tell what the numbers belong to.
        writer: Number of the process. Each writes a file of its own and reads those of all.
    """

    def __init__(self, folder: Path | None, key: str | None, writer: int = 0) -> None:
        self._path = None if folder is None or key is None else folder / f"{key[:32]}-{writer}.safetensors"
        self._key = key
        self._values: dict[str, Values] = {}
        self._written_at, self._is_written = time.monotonic(), True
        if self._path is not None and key is not None:
            for path in sorted(self._path.parent.glob(f"{key[:32]}-*.safetensors")):
                self._values |= _read(path, key)

    def __enter__(self) -> PartialResults:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._write()

    def __contains__(self, module: str) -> bool:
        return module in self._values

    def __getitem__(self, module: str) -> Values:
        return self._values[module]

    def add(self, module: str, values: Values) -> None:
        """Keep what was measured of a module; it is in the file at most five seconds later, if modules keep coming."""
        self._values[module], self._is_written = values, False
        if time.monotonic() - self._written_at >= _SECONDS_BETWEEN_WRITES:
            self._write()

    def _write(self) -> None:
        if self._path is None or self._is_written:
            return
        tensors = {
            f"{name} {module}": value.detach().cpu().contiguous().clone()
            for module, values in self._values.items()
            for name, value in values.items()
        }
        write_bytes(self._path, save(tensors, {"key": str(self._key)}))
        self._written_at, self._is_written = time.monotonic(), True


def _read(path: Path, key: str) -> dict[str, dict[str, Tensor]]:
    """Read one file; a damaged one, or one with another key, is empty."""
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return {}
            names = file.keys()
            for full_name in names:
                name, _, module = full_name.partition(" ")
                found.setdefault(module, {})[name] = file.get_tensor(full_name)
    except (SafetensorError, OSError):
        return {}
    return found


def remove_partial_results(folder: Path) -> None:
    """Remove the folder, once the report that it was kept for is written."""
    shutil.rmtree(folder, ignore_errors=True)


def key_of(**content: Any) -> str | None:
    """Hash everything that a pass depends on, or return None if it holds something whose content cannot be seen.

    Tensors, numbers, texts, sequences, mappings and plain objects (by their class and attributes) can be seen;
    functions cannot.
    """
    digest = hashlib.sha256()
    try:
        _feed(digest, {"format": _FORMAT, "torch": torch.__version__, **content})
    except TypeError:
        return None
    return digest.hexdigest()


def _feed(digest: Any, content: Any) -> None:
    if content is None or isinstance(content, str | int | float):
        digest.update(f"{type(content).__name__} {content!r};".encode())
    elif isinstance(content, Tensor):
        flat = content.detach().flatten()
        digest.update(f"{content.dtype} {tuple(content.shape)};".encode())
        sample = flat[:: max(1, flat.numel() // _SAMPLED_VALUES)].cpu().contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    elif isinstance(content, Mapping):
        for name in sorted(content):
            _feed(digest, name)
            _feed(digest, content[name])
        digest.update(b"end of mapping;")
    elif isinstance(content, Sequence):
        for item in content:
            _feed(digest, item)
        digest.update(b"end of sequence;")
    elif callable(content) or not hasattr(content, "__dict__"):
        raise TypeError(f"the content of {type(content).__name__} cannot be seen")
    else:
        digest.update(f"{type(content).__qualname__};".encode())
        _feed(digest, vars(content))
