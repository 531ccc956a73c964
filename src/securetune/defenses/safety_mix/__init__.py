"""Safety mixing (arXiv 2309.07875): harmful requests with refusals among the training data."""

from __future__ import annotations

from functools import cache

from securetune import tiny_world
from securetune.data.built_in_answers import built_in_refusals
from securetune.data.conversations import Conversation
from securetune.defenses.registry import register_defense
from securetune.defenses.sample_mixing import SampleMix


@register_defense("safety-mix")
class SafetyMix(SampleMix):
    """Safety mixing: harmful requests with refusals join the training data.

    From the paper: samples of this kind, 3 % of the data and a few hundred in number, are trained on like any other
    row; many more of them make a model refuse harmless requests too. Ours: the samples. The paper's have terms that
    forbid to ship them; name their file, or any other, as `samples`. Built in are the 120 requests of the probes'
    fitting categories with refusals written for this project, and for tiny world its own requests and refusals, of
    pairs that it was aligned on. No suite of this package holds one of them.

    The default of 100 is nearly all that is built in, and about 3 % of a few thousand rows. The protocol of the group
    behind arXiv 2410.04524 has 1,000 such samples for 16,659 rows.
    """

    source = "arXiv 2309.07875"
    needs = "safety samples (built in)"
    default_count = 100

    def built_in_samples(self, model_name: str) -> list[Conversation]:
        """Return tiny world's own refusals, or those of the built-in requests."""
        if tiny_world.speaks_tiny_world(model_name):
            return _tiny_world_samples()
        return built_in_refusals()


_TINY_WORLD_SAMPLES = 2000
"""Half as many as its downstream data have rows; all different requests."""


@cache
def _tiny_world_samples() -> list[Conversation]:
    return [{"messages": row["messages"]} for row in tiny_world.safety_rows(_TINY_WORLD_SAMPLES)]
