"""YAML files and `--set key.path=value`: text in, plain nested mappings out."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from securetune.artifacts import write_text
from securetune.config.checking import merge
from securetune.errors import ConfigError

_MERGE_KEY = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice: YAML would keep the last one without a word."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check what was written, once: YAML's `<<` puts other mappings' keys beside it, where they stay."""
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._require_keys_once(node)
        super().flatten_mapping(node)

    def _require_keys_once(self, node: yaml.MappingNode) -> None:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = "<<" if key_node.tag == _MERGE_KEY else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the constructor says so
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f'key "{key}" is given twice', key_node.start_mark)
            seen.add(key)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: If the file is missing, is not YAML, gives a key twice, or does not hold a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping of settings; got {type(content).__name__}")
    return content


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, atomically, in the given order of keys."""
    write_text(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=120))


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `key.path=value` texts into one nested mapping; values are read as YAML.

    Example:
        >>> parse_overrides(["training.max_steps=20", "seeds=[0, 1]"])
        {'training': {'max_steps': 20}, 'seeds': [0, 1]}

    Raises:
        ConfigError: If a text has no `=`, an empty key, or a value that is not YAML; all of them together.
    """
    problems: list[str] = []
    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            problems.append(f"--set must be KEY.PATH=VALUE, such as training.max_steps=100; got {assignment!r}")
            continue
        try:
            nested = merge(nested, nest(parts, yaml.safe_load(value)))
        except yaml.YAMLError:
            problems.append(f"--set {key.strip()}: the value is not valid YAML; got {value!r}")
    if problems:
        raise ConfigError(problems)
    return nested


def nest(parts: list[str], value: Any) -> dict[str, Any]:
    """Return `{"a": {"b": value}}` for the key path `["a", "b"]`."""
    for part in reversed(parts):
        value = {part: value}
    return dict(value)
