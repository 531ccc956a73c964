"""The base of all settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]

NOT_SHOWN = "not_shown"
"""Type of a mistake whose message must not repeat the value, because that may hold a secret."""


class Settings(BaseModel):
    """Base of all settings: immutable; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
