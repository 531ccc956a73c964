"""IFT: everything at one learning rate, in one phase."""

from __future__ import annotations

from securetune.defenses.base import Defense
from securetune.defenses.registry import register_defense


@register_defense("ift")
class PlainFineTuning(Defense):
    """Plain instruction fine-tuning, the baseline: no defense at all.

    Example:
        >>> PlainFineTuning().needs_manifest
        False
    """

    purpose = "control"
    source = "baseline of arXiv 2410.04524"
