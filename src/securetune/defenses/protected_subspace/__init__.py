"""Protected subspace: updates stay out of the directions in which harmful requests pass through the model."""

from securetune.defenses.protected_subspace.options import ProtectedSubspaceOptions
from securetune.defenses.protected_subspace.protection import ProtectedSubspace

__all__ = ["ProtectedSubspace", "ProtectedSubspaceOptions"]
