"""Suites of prompts on which refusals are counted: registered ones, and files of the user.

A suite is named on the command line in one of these ways:

- `tiny-world-harmful`: a registered suite, its default split (`test`);
- `tiny-world-harmful@validation`: another split of it, for choosing settings without touching the test prompts;
- `prompts.txt`: a file of harmful prompts (text, one a line; or JSON lines with `prompt` or `messages`);
- `harmless:prompts.txt`: a file of harmless prompts, whose refusals are over-refusals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from securetune.artifacts import sha256_json
from securetune.data.prompts import Prompt, read_prompts
from securetune.errors import DataError
from securetune.evaluation.registry import Registry, find_split

SuiteKind = Literal["harmful", "harmless"]


@dataclass(frozen=True)
class Suite:
    """Prompts to be judged together.

    Attributes:
        name: Registered name (with its split, if one was asked for) or file name without ending.
        kind: `harmful` or `harmless`.
        wrapper: Attack wrapper around every prompt, or None.
        prompts: At least one.
    """

    name: str
    kind: SuiteKind
    wrapper: str | None
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class RegisteredSuite:
    """A suite that is known by name.

    Attributes:
        name: What the user types.
        description: One sentence for `securetune ls suites`.
        kind: `harmful` or `harmless`.
        wrapper: Attack wrapper around every prompt, or None.
        splits: Names after the `@`, the default first.
        load: Split → prompts; called only when the suite is used.
    """

    name: str
    description: str
    kind: SuiteKind
    wrapper: str | None
    splits: tuple[str, ...]
    load: Callable[[str], Iterable[Prompt]]


_SUITES: Registry[RegisteredSuite] = Registry("suite")


def register_suite(suite: RegisteredSuite) -> RegisteredSuite:
    """Make a suite available by name.

    Raises:
        ValueError: If the name is taken.
    """
    return _SUITES.add(suite)


def list_suites() -> list[RegisteredSuite]:
    """Return the registered suites."""
    return _SUITES.all()


def load_suite(name_or_file: str, max_prompts: int | None = None) -> Suite:
    """Find a suite by registered name or as a file.

    Args:
        name_or_file: As the user typed it; see the head of this module.
        max_prompts: Take at most this many, the first ones.

    Example:
        >>> load_suite("tiny-world-harmful@validation", max_prompts=2).wrapper is None
        True

    Raises:
        DataError: If it is neither a registered name nor a readable prompt file, or the split does not exist.
    """
    prefix, _, rest = name_or_file.partition(":")
    if rest and prefix in get_args(SuiteKind):
        suite = Suite(Path(rest).stem, "harmless" if prefix == "harmless" else "harmful", None, _read_file(rest))
    else:
        suite = _registered(name_or_file) or Suite(
            Path(name_or_file).stem, "harmful", None, _read_file(name_or_file, or_registered=True)
        )
    return suite if max_prompts is None else replace(suite, prompts=suite.prompts[:max_prompts])


def _registered(name: str) -> Suite | None:
    found = find_split(name, _SUITES)
    if found is None:
        return None
    registered, split = found
    return Suite(name, registered.kind, registered.wrapper, tuple(registered.load(split)))


def _read_file(name: str, or_registered: bool = False) -> tuple[Prompt, ...]:
    if or_registered and not Path(name).exists():
        raise DataError(f'suite "{name}" is neither a registered suite nor a file. {_SUITES.hint(name)}')
    return tuple(read_prompts(Path(name)))


def prompt_set_hash(prompts: Iterable[Prompt]) -> str:
    """Hash the prompts' identifiers and messages."""
    return sha256_json([[prompt.id, [dict(message) for message in prompt.messages]] for prompt in prompts])
