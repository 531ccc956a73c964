"""Plain instruction fine-tuning: the baseline that every defense is held against."""

from securetune.defenses.ift.plain import PlainFineTuning

__all__ = ["PlainFineTuning"]
