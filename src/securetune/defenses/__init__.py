"""Defenses: one folder each, found and registered when this package is imported."""

import importlib
import pkgutil

from securetune.defenses.base import (
    MAIN_PHASE,
    Defense,
    DefenseContext,
    ParameterGroup,
    ParameterSets,
    Phase,
    plain_phase,
)
from securetune.defenses.registry import (
    DefenseDescription,
    defense_of,
    find_defense,
    find_weight_defense,
    list_defenses,
    register_defense,
)
from securetune.defenses.weight_defense import ModuleDecision, PatchedTensor, WeightDefense, WeightDefenseConfig
from securetune.defenses.weight_sources import RoleReader, TensorReader, WeightRole

for _folder in pkgutil.iter_modules(__path__):
    if _folder.ispkg:
        importlib.import_module(f"{__name__}.{_folder.name}")

__all__ = [
    "MAIN_PHASE",
    "Defense",
    "DefenseContext",
    "DefenseDescription",
    "ModuleDecision",
    "ParameterGroup",
    "ParameterSets",
    "PatchedTensor",
    "Phase",
    "RoleReader",
    "TensorReader",
    "WeightDefense",
    "WeightDefenseConfig",
    "WeightRole",
    "defense_of",
    "find_defense",
    "find_weight_defense",
    "list_defenses",
    "plain_phase",
    "register_defense",
]
