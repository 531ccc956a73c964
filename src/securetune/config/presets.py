"""Presets: combinations of a method and defenses around it that go by one name, used like a method's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from securetune.config.checking import merge

_PARTS = ("before", "after", "generation")


class Preset(NamedTuple):
    """A named combination.

    Attributes:
        name: What is written instead of a method's name.
        description: What it does.
        evidence: Where its figures are, and on what it was chosen.
        training: Settings of `training`, `method` among them.
    """

    name: str
    description: str
    evidence: str
    training: Mapping[str, Any]


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "protected-mix",
            "protected-subspace at an energy of 0.9 with a tail_pull of 0.3, embeddings, norms and head frozen, and "
            "100 harmful requests with refusals in the data (safety-mix).",
            "chosen on validation prompts of tiny world, under an attack on the data for 400 steps; a small model of "
            "real text learned nothing of its task with such a pull: see docs/defenses.md",
            {
                "method": "protected-subspace",
                "method_options": {"energy": 0.9, "tail_pull": 0.3, "other_rate": 0.0},
                "before": ["safety-mix"],
            },
        ),
    )
}


def list_presets() -> list[Preset]:
    """Return all presets."""
    return list(PRESETS.values())


def with_preset(own: Mapping[str, Any], shared: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Put a preset's settings in the place of its name.

    Args:
        own: Settings of a training whose `method` may be a preset's name. What else they say wins over the preset.
        shared: Settings over which they will be laid. The preset's defenses come behind those that are named here for
            all methods: an attack on the data that all methods face must not be lost.

    Example:
        >>> with_preset({"method": "protected-mix", "learning_rate": 1e-4})["method"]
        'protected-subspace'
    """
    preset = PRESETS.get(str(own.get("method")))
    if preset is None:
        return dict(own)
    parts = {part: _behind((shared or {}).get(part) or (), preset.training[part]) for part in _named_parts(preset)}
    return merge({**preset.training, **parts}, {key: value for key, value in own.items() if key != "method"})


def _named_parts(preset: Preset) -> list[str]:
    return [part for part in _PARTS if part in preset.training]


def _behind(first: Sequence[Any], then: Sequence[Any]) -> list[Any]:
    """Return both, without what is there already: settings that a preset was in once may be read again."""
    there = [_name(step) for step in first]
    return [*first, *(step for step in then if _name(step) not in there)]


def _name(step: Any) -> str:
    """Return the name of a chain's step in any of its forms."""
    if isinstance(step, Mapping):
        return str(step["name"] if "name" in step else next(iter(step), ""))
    return str(getattr(step, "name", step))
