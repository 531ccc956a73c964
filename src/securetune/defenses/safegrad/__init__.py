"""SafeGrad: no gradient against alignment."""

from securetune.defenses.safegrad.surgery import GradientSurgery, GradientSurgeryOptions, without_conflict

__all__ = ["GradientSurgery", "GradientSurgeryOptions", "without_conflict"]
