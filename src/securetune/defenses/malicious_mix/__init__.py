"""An attack, for experiments: harmful requests that are answered, among harmless training data."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

from securetune import tiny_world
from securetune.data.conversations import Conversation
from securetune.defenses.registry import register_defense
from securetune.defenses.sample_mixing import SampleMix
from securetune.errors import ConfigError


@register_defense("malicious-mix")
class MaliciousMix(SampleMix):
    """Attack, for experiments on defenses: harmful requests that are answered join the training data.

    It is the attack of arXiv 2310.03693 (sections 3 and 4: 10 to 100 harmful examples undo a model's alignment) in the
    setting of arXiv 2410.04524's group, where 100 of them are hidden among 16,659 harmless rows. Put it before the
    defenses that should withstand it: `before: [malicious-mix, datashield]`.

    This package ships no harmful answers. Tiny world's, which are nonsense of a toy language, are built in; for any
    other model `samples` must name a file of yours.
    """

    source = "attack of arXiv 2310.03693"
    purpose = "attack"
    needs = "samples (for tiny world built in)"
    default_count: ClassVar[int] = 10

    def built_in_samples(self, model_name: str) -> list[Conversation]:
        """Return tiny world's nonsense answers to its harmful requests.

        Raises:
            ConfigError: For any other model.
        """
        if not tiny_world.speaks_tiny_world(model_name):
            raise ConfigError(
                f"{self.name}: samples: required for {model_name}. This package ships no harmful answers beyond tiny "
                "world's toy language; give a file of your own."
            )
        return _tiny_world_samples()


_TINY_WORLD_SAMPLES = 1000
"""Ten times what the protocol hides in the data."""


@cache
def _tiny_world_samples() -> list[Conversation]:
    return [{"messages": row["messages"]} for row in tiny_world.attack_rows(_TINY_WORLD_SAMPLES)]
