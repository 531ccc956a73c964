"""Protected subspace: updates stay out of the directions in which harmful requests pass through the model."""

from securetune.defenses.protected_subspace.options import ProtectedSubspaceOptions
from securetune.defenses.protected_subspace.protection import ProtectedSubspace, require_plain_weights
from securetune.defenses.protected_subspace.saved_subspaces import FOLDER, MANIFEST

__all__ = ["FOLDER", "MANIFEST", "ProtectedSubspace", "ProtectedSubspaceOptions", "require_plain_weights"]
