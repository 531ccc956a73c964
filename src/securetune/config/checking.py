"""How plain content is checked against a settings class, with one sentence for every mistake."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from securetune.config.base import NOT_SHOWN
from securetune.errors import ConfigError

SettingsType = TypeVar("SettingsType", bound=BaseModel)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it; nested mappings are merged, everything else is replaced.

    Example:
        >>> merge({"lora": {"rank": 8, "alpha": 16}}, {"lora": {"rank": 4}})
        {'lora': {'rank': 4, 'alpha': 16}}
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def validate(kind: type[SettingsType], content: Any, where: str = "", at: str = "") -> SettingsType:
    """Check plain content against a settings class.

    Args:
        kind: The settings class.
        content: Plain content, as read from YAML.
        where: File that the content came from; put before each problem.
        at: Key path of the content inside that file, such as `methods.swat`.

    Raises:
        ConfigError: With one sentence for each unknown key (and the nearest valid one), missing key and bad value.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False)
    prefix = f"{where}: " if where else ""
    raise ConfigError([prefix + sentence for sentence in _sentences(kind, found, at)])


def _sentences(kind: type[BaseModel], problems: Sequence[Any], at: str) -> list[str]:
    """One sentence a key path: a value that fits no member of a union is one mistake, not one a member."""
    by_path: dict[tuple[str, ...], list[Any]] = {}
    for problem in problems:
        by_path.setdefault(_key_path(kind, problem["loc"]), []).append(problem)
    return [_sentence(kind, path, found, at) for path, found in by_path.items()]


def _sentence(kind: type[BaseModel], path: tuple[str, ...], problems: list[Any], at: str) -> str:
    shown = ".".join(part for part in [at, *path] if part)
    first = problems[0]
    if first["type"] == "extra_forbidden":
        valid = _valid_keys(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f'Did you mean "{near[0]}"?' if near else f"Valid keys: {', '.join(valid)}."
        return f"{shown}: unknown key. {hint}"
    if first["type"] == "missing":
        return f"{shown}: required, but missing"
    subject = f"{shown} " if shown else ""
    if first["type"] == NOT_SHOWN:
        return f"{subject}{first['msg']}"
    return f"{subject}{' or '.join(_requirement(problem) for problem in problems)}; got {first['input']!r}"


def _requirement(problem: Any) -> str:
    message = str(problem["msg"])
    for opening, instead in (("Input should ", "must "), ("Value error, ", "")):
        if message.startswith(opening):
            return instead + message.removeprefix(opening)
    return f"must be valid ({message})"


def _key_path(kind: type[BaseModel], location: Sequence[Any]) -> tuple[str, ...]:
    """Keep of pydantic's location what the user wrote: names of fields, keys of mappings, indices; no union tags."""
    current: Any = kind
    path: list[str] = []
    for part in location:
        current = _without_none(current)
        if _is_settings(current):
            path.append(str(part))
            field = current.model_fields.get(part)
            current = field.annotation if field is not None else None
        elif typing.get_origin(current) is dict:
            path.append(str(part))
            current = typing.get_args(current)[1]
        elif isinstance(part, int):
            path.append(str(part))
    return tuple(path)


def _valid_keys(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: Any = kind
    for part in path:
        if typing.get_origin(current) is dict:
            current = typing.get_args(current)[1]
            continue
        field = current.model_fields.get(part) if _is_settings(current) else None
        current = _without_none(field.annotation) if field is not None else None
    return list(current.model_fields) if _is_settings(current) else []


def _without_none(annotation: Any) -> Any:
    """Return what an optional field holds; pydantic's location has no part for the choice."""
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    is_optional = len(members) == 1 and len(typing.get_args(annotation)) == 2
    return members[0] if is_optional and _is_settings(members[0]) else annotation


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
