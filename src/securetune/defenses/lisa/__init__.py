"""Lisa: lazy safety alignment, two states that take turns."""

from securetune.defenses.lisa.two_states import LazySafetyAlignment, LisaOptions

__all__ = ["LazySafetyAlignment", "LisaOptions"]
