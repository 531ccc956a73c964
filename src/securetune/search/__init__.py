"""Search for the set of modules that is robust jointly (Mods_Rob), and other sets to compare it with."""

from securetune.search.controls import CONTROL_KINDS, ControlKind, control_set
from securetune.search.joint_prediction import JointPredictor
from securetune.search.joint_test import JointTest
from securetune.search.ranking import default_order, rank_modules
from securetune.search.robust_modules import SearchResult, search_robust_modules
from securetune.search.study import study_search

__all__ = [
    "CONTROL_KINDS",
    "ControlKind",
    "JointPredictor",
    "JointTest",
    "SearchResult",
    "control_set",
    "default_order",
    "rank_modules",
    "search_robust_modules",
    "study_search",
]
