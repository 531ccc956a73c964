"""SPPFT: the layers that tell harmful from harmless requests do not train."""

from securetune.defenses.sppft.freezing import FrozenSafetyLayers, SafetyLayerOptions

__all__ = ["FrozenSafetyLayers", "SafetyLayerOptions"]
