"""A chain of defenses, as a YAML file says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from securetune.config.base import Settings


class ChainStep(Settings):
    """A defense in a chain. In YAML its name alone (`resta`), or its name with settings (`wise-ft: {strength: 0.3}`).

    Attributes:
        name: Registered name of the defense.
        options: Its settings, and for a defense on weights the other models it needs, by role (`base: NAME`).

    Example:
        >>> ChainStep.model_validate({"wise-ft": {"strength": 0.3}})
        ChainStep(name='wise-ft', options={'strength': 0.3})
    """

    name: str = Field(min_length=1)
    options: dict[str, Any] = Field(default={})

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, content: Any) -> Any:
        if isinstance(content, str):
            return {"name": content}
        if isinstance(content, Mapping) and len(content) == 1 and "name" not in content:
            ((name, options),) = content.items()
            return {"name": name, "options": {} if options is None else options}
        return content


class ChainParts(Settings):
    """The defenses around a training. In YAML a mapping of parts, or a list of those on the finished weights.

    Attributes:
        before: Defenses on the training data.
        after: Defenses on the finished weights.
        generation: Defenses at generation.

    Example:
        >>> [step.name for step in ChainParts.model_validate(["resta"]).after]
        ['resta']
    """

    before: tuple[ChainStep, ...] = ()
    after: tuple[ChainStep, ...] = ()
    generation: tuple[ChainStep, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, content: Any) -> Any:
        return {"after": content} if isinstance(content, list | tuple) else content
