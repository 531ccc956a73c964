"""AsFT: updates stay in the directions in which alignment moved the weights."""

from securetune.defenses.asft.anchoring import AnchoredUpdates, AnchoringOptions

__all__ = ["AnchoredUpdates", "AnchoringOptions"]
