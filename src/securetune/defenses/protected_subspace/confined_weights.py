"""Which parameters of a model are confined, and to what: whole projections, parts of fused ones, or their adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from securetune.defenses.protected_subspace.confinement import Basis, ConfinedWeight
from securetune.defenses.protected_subspace.gathering import Subspaces
from securetune.models import ProjectionModule
from securetune.models.parameter_names import layer_path, own_name, parameters_by_name
from securetune.processes import Processes

_LORA_A = ".lora_A."


def confined_weights(
    model: nn.Module, modules: Sequence[ProjectionModule], subspaces: Subspaces, tail_pull: float
) -> list[ConfinedWeight]:
    """Return what to confine, without its anchors.

    A parameter or an adapter that holds several projections is one: with different energies, a parameter's rows have
    directions of their own, and an adapter, whose A all of them share, takes the most.

    Args:
        model: The model, with or without adapters; only the shapes of its parameters are looked at.
        modules: The projections to protect.
        subspaces: Their directions.
        tail_pull: Share that is taken back where the protected directions end.
    """
    is_adapted = isinstance(model, PeftModel)
    parameters = dict(parameters_by_name(model))
    bases: dict[int, Basis] = {}
    found = []
    for name, together in _by_parameter(model, modules, is_adapted).items():
        spectrum = subspaces.spectra[together[0].path]
        shares = [spectrum.shares(subspaces.energies[module.name], tail_pull) for module in together]
        rank = max(map(len, shares))
        if rank == 0:
            continue
        basis = bases.setdefault(id(spectrum.vectors), Basis(spectrum.vectors))
        transposed = together[0].part.transposed and not is_adapted
        outputs = parameters[name].shape[-1 if transposed else 0]
        own = max(shares, key=lambda each: float(each.sum())) if is_adapted else _by_output(outputs, together, shares)
        found.append(ConfinedWeight(name, basis, rank, is_adapted, transposed, None if bool((own == 1).all()) else own))
    return found


def anchored_weights(
    model: nn.Module, modules: Sequence[ProjectionModule], subspaces: Subspaces, tail_pull: float
) -> list[ConfinedWeight]:
    """Return what to confine, with what the weights of the start model do to the directions.

    Args:
        model: The start model, whole.
        modules: As `confined_weights`.
        subspaces: As `confined_weights`.
        tail_pull: As `confined_weights`.
    """
    found = confined_weights(model, modules, subspaces, tail_pull)
    parameters = dict(parameters_by_name(model))
    for weight in found:
        if not weight.is_adapter:
            weight.anchor = weight.anchored(parameters[weight.name])
    return found


def share_anchors(weights: Sequence[ConfinedWeight], processes: Processes) -> None:
    """Give every process the anchors of the main one, a weight at a time."""
    for weight in weights if processes.count > 1 else ():
        weight.anchor = processes.from_main(None if weight.anchor is None else weight.anchor.cpu())


def _by_parameter(
    model: nn.Module, modules: Sequence[ProjectionModule], is_adapted: bool
) -> dict[str, list[ProjectionModule]]:
    """Return name of a parameter that moves → the projections that it holds; without an adapter, nothing moves."""
    adapters = _adapters(model)
    found: dict[str, list[ProjectionModule]] = {}
    for module in modules:
        name = adapters.get(holder_path(module)) if is_adapted else own_name(module.weight_name)
        if name is not None:
            found.setdefault(name, []).append(module)
    return found


def _by_output(
    outputs: int, together: Sequence[ProjectionModule], shares: Sequence[Float[Tensor, " _rank"]]
) -> Float[Tensor, "*_out rank"]:
    """Return the shares of each output, or those of all where they are the same."""
    found = torch.zeros(outputs, max(map(len, shares)))
    for module, each in zip(together, shares, strict=True):
        replace(module.part, transposed=False).of_weight(found)[..., : len(each)] = each
    return found[0] if bool((found == found[0]).all()) else found


def _adapters(model: nn.Module) -> Mapping[str, str]:
    """Return path of the adapted layer → name of its lora_A."""
    return {name.partition(_LORA_A)[0]: name for name, _ in parameters_by_name(model) if _LORA_A in name}


def holder_path(module: ProjectionModule) -> str:
    """Return the path of what owns a projection's weights, biases and adapters, as the model names it now."""
    return layer_path(module.weight_name)


def input_width(module: ProjectionModule, model: nn.Module) -> int:
    """Return how many values enter a projection; a quantized weight's own shape does not tell."""
    holder = module.holder_in(model)
    return holder.in_features if isinstance(holder, nn.Linear) else module.weight_in(model).shape[-1]
