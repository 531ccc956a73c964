"""GuardSpace: adapters made of what matters least to harmful requests, and without effect on them."""

from securetune.defenses.guardspace.null_space import GuardedAdapters, GuardSpaceOptions, least_relevant_part

__all__ = ["GuardSpaceOptions", "GuardedAdapters", "least_relevant_part"]
