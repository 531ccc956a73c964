"""The registered defenses; every list of them, in the command line or the docs, is made from here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from securetune.config import TrainingSettings
from securetune.defenses.base import Defense
from securetune.defenses.weight_defense import WeightDefense
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


def defense_of(settings: TrainingSettings) -> Defense:
    """Return the method of a training, with its own options.

    Raises:
        ConfigError: If there is no such method, or its options are wrong.
    """
    return find_defense(settings.method, settings.method_options)


def find_defense(name: str, options: Mapping[str, Any] | None = None) -> Defense:
    """Return a new defense of that name, to train with.

    Args:
        name: Registered name.
        options: Its own settings; those left out have their defaults.

    Raises:
        ConfigError: If there is none (the nearest name is given), it acts on finished weights, or an option is wrong.
    """
    trains = {known: defense for known, defense in _REGISTERED.items() if defense.stage != "weights"}
    if name in _REGISTERED and name not in trains:
        raise ConfigError(
            f'method "{name}" acts on finished weights: train with another one, then run `securetune patch MODEL '
            f"--with {name}`."
        )
    return _find(name, trains, "method", "Methods")(options)


def find_weight_defense(name: str) -> type[WeightDefense]:
    """Return the class of the defense on weights of that name; its settings are yet to be given.

    Raises:
        ConfigError: If there is none; the nearest name is given.
    """
    acts = {known: defense for known, defense in _REGISTERED.items() if issubclass(defense, WeightDefense)}
    return _find(name, acts, "defense on weights", "Defenses on weights")


def _find(name: str, among: Mapping[str, DefenseType], what: str, listed_as: str) -> DefenseType:
    if name in among:
        return among[name]
    near = difflib.get_close_matches(name, among, n=1, cutoff=0.5)
    hint = f'Did you mean "{near[0]}"?' if near else f"{listed_as}: {', '.join(sorted(among))}."
    raise ConfigError(f'{what} "{name}" is unknown. {hint}')


def list_defenses() -> list[DefenseDescription]:
    """Return the registered defenses by name."""
    return [
        DefenseDescription(
            name, defense.stage, defense.needs_manifest, (inspect.getdoc(defense) or "").split("\n")[0], defense.source
        )
        for name, defense in sorted(_REGISTERED.items())
    ]
