"""The registered defenses; every list of them, in the command line or the docs, is made from here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from securetune.defenses.base import Defense
from securetune.errors import ConfigError

_REGISTERED: dict[str, type[Defense]] = {}

DefenseType = TypeVar("DefenseType", bound=type[Defense])


class DefenseDescription(NamedTuple):
    """One line of `securetune ls methods`.

    Attributes:
        name: What the user types.
        stage: `data`, `training`, `weights` or `generation`.
        needs_manifest: Whether it needs a manifest of robust modules.
        summary: First line of the class's docstring.
        source: The paper it comes from.
    """

    name: str
    stage: str
    needs_manifest: bool
    summary: str
    source: str


def register_defense(name: str) -> Callable[[DefenseType], DefenseType]:
    """Announce a defense under a name.

    Raises:
        TypeError: If the class is not a `Defense`.
        ValueError: If the name is taken.
    """

    def register(defense: DefenseType) -> DefenseType:
        if not (inspect.isclass(defense) and issubclass(defense, Defense)):
            raise TypeError(f"a defense must be a subclass of Defense; got {defense!r}")
        if name in _REGISTERED:
            raise ValueError(f'defense "{name}" is registered already, by {_REGISTERED[name]!r}; got {defense!r}')
        defense.name = name
        _REGISTERED[name] = defense
        return defense

    return register


def find_defense(name: str) -> Defense:
    """Return a new defense of that name.

    Raises:
        ConfigError: If there is none; the nearest name is given.
    """
    if name not in _REGISTERED:
        near = difflib.get_close_matches(name, _REGISTERED, n=1, cutoff=0.5)
        hint = f'Did you mean "{near[0]}"?' if near else f"Methods: {', '.join(_REGISTERED)}."
        raise ConfigError(f'method "{name}" is unknown. {hint}')
    return _REGISTERED[name]()


def list_defenses() -> list[DefenseDescription]:
    """Return the registered defenses by name."""
    return [
        DefenseDescription(
            name, defense.stage, defense.needs_manifest, (inspect.getdoc(defense) or "").split("\n")[0], defense.source
        )
        for name, defense in sorted(_REGISTERED.items())
    ]
