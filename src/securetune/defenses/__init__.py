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
from securetune.defenses.data_defense import ChangedRows, DataContext, DataDefense
from securetune.defenses.generation_chain import chained_generation, check_templates, shown_steps
from securetune.defenses.generation_defense import GenerationDefense, shown_messages
from securetune.defenses.registry import (
    DefenseDescription,
    defense_of,
    find_data_defense,
    find_defense,
    find_generation_defense,
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
    "ChangedRows",
    "DataContext",
    "DataDefense",
    "Defense",
    "DefenseContext",
    "DefenseDescription",
    "GenerationDefense",
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
    "chained_generation",
    "check_templates",
    "defense_of",
    "find_data_defense",
    "find_defense",
    "find_generation_defense",
    "find_weight_defense",
    "list_defenses",
    "plain_phase",
    "register_defense",
    "shown_messages",
    "shown_steps",
]
