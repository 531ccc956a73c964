"""Search for the set of modules that is robust jointly (Mods_Rob), and control sets to compare it with."""

from securetune.search.controls import control_set
from securetune.search.joint_test import JointTest
from securetune.search.ranking import rank_modules
from securetune.search.robust_modules import SearchResult, search_robust_modules

__all__ = ["JointTest", "SearchResult", "control_set", "rank_modules", "search_robust_modules"]
