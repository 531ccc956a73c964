"""What a model is to be shown when it answers: `generation_defenses.json` in its folder."""

from __future__ import annotations

from typing import Any, Literal

from securetune.artifacts.estimates import Artifact

GENERATION_FILE = "generation_defenses.json"
"""Its name in a model's folder; a copy of the folder's small files takes it along."""


class ShownStep(Artifact):
    """A defense at generation, with every option filled in.

    Attributes:
        name: Registered name.
        options: All of its options.
    """

    name: str
    options: dict[str, Any]


class GenerationDefenses(Artifact):
    """`generation_defenses.json`: what stands between the user's messages and the model, in this order."""

    format: Literal["securetune.generation_defenses/1"] = "securetune.generation_defenses/1"
    steps: list[ShownStep]
