"""The module map by type, with how each type is stored."""

from __future__ import annotations

from collections.abc import Sequence

from securetune.models import MODULE_TYPES, ProjectionModule
from securetune.pipeline.planning.planned import MappedType


def map_by_type(modules: Sequence[ProjectionModule], parameter_count: int) -> list[MappedType]:
    """Gather a model's projections by their type.

    Args:
        modules: As `map_modules` gives them.
        parameter_count: Of the whole model.
    """
    by_type = {kind: [module for module in modules if module.type == kind] for kind in MODULE_TYPES}
    return [_mapped(kind, found, parameter_count) for kind, found in by_type.items() if found]


def _mapped(kind: str, found: Sequence[ProjectionModule], parameter_count: int) -> MappedType:
    count = sum(module.parameter_count for module in found)
    return MappedType(
        type=kind,
        layers=[module.layer for module in found],
        parameter_count=count,
        share=count / parameter_count,
        stored="; ".join(dict.fromkeys(map(_stored, found))),
    )


def _stored(module: ProjectionModule) -> str:
    name = module.path.rpartition(".")[2]
    fused = f"part of the fused {name}" if module.part.period is not None else f"{name}"
    return f"{fused}, of all experts" if module.of_experts else fused
