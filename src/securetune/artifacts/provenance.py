"""Where a result comes from: hashes of its inputs, versions, hardware."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PACKAGES = ("securetune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "scikit-learn")


def sha256_text(*parts: str) -> str:
    """Hash texts; the parts are kept apart, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        digest.update(part.encode())
    return digest.hexdigest()


def sha256_json(content: Any) -> str:
    """Hash plain JSON content, independently of the order of keys."""
    return sha256_text(json.dumps(content, sort_keys=True, ensure_ascii=False))


def sha256_files(paths: Iterable[Path]) -> str:
    """Hash the bytes of several files, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """Return package versions and hardware, for the provenance of a result.

    The accelerator is asked of torch only if torch is loaded: a result that was made without it used none.
    """
    found = {"python": platform.python_version(), "machine": platform.machine(), "cpu_count": str(os.cpu_count())}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found
