"""The registered defenses; every list of them, in the command line or the docs, is made from here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from securetune.config import TrainingSettings
from securetune.defenses.base import Defense
from securetune.defenses.data_defense import DataDefense
from securetune.defenses.generation_defense import GenerationDefense
from securetune.defenses.weight_defense import WeightDefense
from securetune.errors import ConfigError

_REGISTERED: dict[str, type[Defense]] = {}

_PLACES = {
    "data": ("acts on the training data", "training.before, or call securetune.prepare_data"),
    "training": ("acts while training", "training.method"),
    "weights": ("acts on finished weights", "training.after"),
    "generation": ("acts at generation", "training.generation"),
}
"""Stage → what a defense of it does, and where a configuration names it."""

DefenseType = TypeVar("DefenseType", bound=type[Defense])
T = TypeVar("T", bound=Defense)


class DefenseDescription(NamedTuple):
    """One line of `securetune ls defenses`.

    Attributes:
        name: What the user types.
        stage: `data`, `training`, `weights` or `generation`.
        purpose: `defense`, `control` or `attack`.
        needs_manifest: Whether it needs a manifest of robust modules.
        summary: First line of the class's docstring.
        needs: What it needs besides the model and the data, in a few words.
        source: The paper it comes from.
    """

    name: str
    stage: str
    purpose: str
    needs_manifest: bool
    summary: str
    needs: str
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
    if name in _REGISTERED and _REGISTERED[name].stage == "weights":
        raise ConfigError(
            f'method "{name}" acts on finished weights: train with another one, then run `securetune patch MODEL '
            f"--with {name}`, or name it in training.after."
        )
    return _find(name, "training", Defense, "method", "Methods")(options)


def find_data_defense(name: str, options: Mapping[str, Any] | None = None) -> DataDefense:
    """Return a new defense on the data of that name.

    Raises:
        ConfigError: If there is none (the nearest name is given), it acts at another stage, or an option is wrong.
    """
    kind: type[DataDefense] = DataDefense  # type: ignore[type-abstract]  # only what derives from it is found
    return _find(name, "data", kind, "defense on the data", "Defenses on the data")(options)


def find_generation_defense(name: str, options: Mapping[str, Any] | None = None) -> GenerationDefense:
    """Return a new defense at generation of that name.

    Raises:
        ConfigError: As `find_data_defense`.
    """
    return _find(name, "generation", GenerationDefense, "defense at generation", "Defenses at generation")(options)


def find_weight_defense(name: str) -> type[WeightDefense]:
    """Return the class of the defense on weights of that name; its settings are yet to be given.

    Raises:
        ConfigError: If there is none; the nearest name is given.
    """
    kind: type[WeightDefense] = WeightDefense  # type: ignore[type-abstract]  # only what derives from it is found
    return _find(name, "weights", kind, "defense on weights", "Defenses on weights")


def _find(name: str, stage: str, kind: type[T], what: str, listed_as: str) -> type[T]:
    among = {
        known: defense for known, defense in _REGISTERED.items() if defense.stage == stage and issubclass(defense, kind)
    }
    if name in among:
        return among[name]
    if name in _REGISTERED:
        acts, place = _PLACES[_REGISTERED[name].stage]
        raise ConfigError(
            f'"{name}" is no {what}: it {acts}. Name it in {place}. {listed_as}: {", ".join(sorted(among))}.'
        )
    near = difflib.get_close_matches(name, among, n=1, cutoff=0.5)
    hint = f'Did you mean "{near[0]}"?' if near else f"{listed_as}: {', '.join(sorted(among))}."
    raise ConfigError(f'{what} "{name}" is unknown. {hint}')


def list_defenses() -> list[DefenseDescription]:
    """Return the registered defenses by name."""
    return [
        DefenseDescription(
            name,
            defense.stage,
            defense.purpose,
            defense.needs_manifest,
            (inspect.getdoc(defense) or "").split("\n")[0],
            ", ".join(_needs(defense)),
            defense.source,
        )
        for name, defense in sorted(_REGISTERED.items())
    ]


def _needs(defense: type[Defense]) -> list[str]:
    """Return what a defense needs, with its options as they are by default."""
    found = ["robust modules"] * defense.needs_manifest + [defense.needs] * bool(defense.needs)
    if issubclass(defense, WeightDefense):
        found.append(f"models: {', '.join(defense().roles)}")
    return found
