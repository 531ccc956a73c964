"""SWAT: the robust modules warm up alone, then everything trains."""

from securetune.defenses.swat.warm_up import SafeWarmUp

__all__ = ["SafeWarmUp"]
