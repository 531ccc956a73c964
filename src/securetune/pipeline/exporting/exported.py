"""What an export is, and the check that every one must pass."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from securetune.errors import ConfigError

Rates = Mapping[str, float]
"""Name of a parameter that trains → its peak learning rate."""


class Exported(NamedTuple):
    """What another tool is to read.

    Attributes:
        text: Content of the file.
        kind: What it selects by, in the plural, such as `patterns`.
        entries: How many of those.
        parameters: Names of the parameters that they match in the real model, as the other tool would match them.
        notes: What the user has to do besides, one sentence each; also in the file, if its format has comments.
    """

    text: str
    kind: str
    entries: int
    parameters: tuple[str, ...]
    notes: tuple[str, ...]


def require_same_names(tool: str, wanted: Collection[str], matched: Collection[str]) -> None:
    """Refuse an export that would train other parameters than the manifest says.

    Raises:
        ConfigError: If `matched` has a name that is not wanted, or lacks one.
    """
    missing, extra = sorted(set(wanted) - set(matched)), sorted(set(matched) - set(wanted))
    if missing or extra:
        example = f"lacks {missing[0]}" if missing else f"has {extra[0]}"
        raise ConfigError(
            f"{tool}: an export must match exactly the {len(set(wanted))} parameters of the manifest's modules; this "
            f"one would lack {len(missing)} of them and have {len(extra)} others (it {example})"
        )


def require_same_rates(tool: str, wanted: Rates, given: Rates, why: str) -> None:
    """Refuse an export that would give a parameter another learning rate than the method does.

    Args:
        tool: Its name.
        wanted: What the method gives.
        given: What the tool would give.
        why: The tool's rule that can be behind a difference, and what to do.

    Raises:
        ConfigError: If they differ.
    """
    require_same_names(tool, wanted, given)
    differing = [name for name, rate in wanted.items() if given[name] != rate]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{tool}: {len(differing)} of {len(wanted)} parameters would get another learning rate than the method "
            f"gives them, such as {name} {given[name]:g} instead of {wanted[name]:g}. {why}"
        )


def commented_yaml(notes: Sequence[str], content: Mapping[str, Any]) -> str:
    """Return YAML that opens with the notes as comments."""
    lines = [
        line for note in notes for line in textwrap.wrap(note, 118, break_on_hyphens=False, break_long_words=False)
    ]
    comments = "".join(f"# {line}\n" for line in lines)
    return comments + "\n" + yaml.safe_dump(dict(content), sort_keys=False, width=10_000)
