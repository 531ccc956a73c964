"""How far training moved the weights, inside Mods_Rob and outside: whether the warm-up did what it is said to do."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from securetune.artifacts import UpdateNorm, WeightUpdate
from securetune.models import ProjectionModule
from securetune.models.parameter_names import own_name, parameters_by_name
from securetune.models.whole_weights import whole
from securetune.training.parameters import adapter_layers, owner_of

Snapshot = dict[str, Tensor]
"""Parameter name → its values, on the CPU."""


class _Squares(NamedTuple):
    update: float
    weight: float


def take_snapshot(model: nn.Module) -> Snapshot:
    """Copy the weights that can change to the CPU: all of them, or under LoRA the adapters.

    The copy of a fully tuned model takes its size once more in CPU memory.
    """
    adapters_only = isinstance(model, PeftModel)
    return {
        name: whole(parameter).to("cpu", copy=True)
        for name, parameter in parameters_by_name(model)
        if not adapters_only or ".lora_" in name
    }


def measure_update(
    model: nn.Module,
    before: Snapshot,
    modules: Sequence[ProjectionModule],
    robust_modules: set[str],
    known_squares: dict[str, float] | None = None,
) -> WeightUpdate:
    """Compare the weights with an earlier snapshot of them.

    Args:
        model: The model as it is now.
        before: Its earlier weights.
        modules: Its projections, as they were mapped before adapters were added.
        robust_modules: Names of the modules in Mods_Rob.
        known_squares: Under LoRA, the squared norms of the frozen weights as far as an earlier call has found them;
            what is missing is added. Reading 7 billion weights again for every log would cost seconds.
    """
    squares: dict[str, list[_Squares]] = defaultdict(list)
    if isinstance(model, PeftModel):
        changes = _adapter_changes(model, before, modules, {} if known_squares is None else known_squares)
    else:
        changes = _changes(model, before, modules)
    for owner, found in changes:
        squares[owner].append(found)
    inside = [one for owner in squares if owner in robust_modules for one in squares[owner]]
    outside = [one for owner in squares if owner and owner not in robust_modules for one in squares[owner]]
    relative = {module.name: _norm(squares[module.name]) for module in modules if module.name in squares}
    return WeightUpdate(
        inside=_norm(inside),
        outside=_norm(outside),
        other=_norm(squares.get("", [])),
        modules={name: norm.relative for name, norm in relative.items() if norm is not None},
    )


def _changes(model: nn.Module, before: Snapshot, modules: Sequence[ProjectionModule]) -> Iterator[tuple[str, _Squares]]:
    """Yield each module with the squared norms of its part of a parameter; "" for what belongs to none."""
    by_path: dict[str, list[ProjectionModule]] = defaultdict(list)
    for module in modules:
        by_path[module.path].append(module)
    for name, parameter in parameters_by_name(model):
        old, new = before[name].double(), whole(parameter).to("cpu").double()
        owners = by_path.get(owner_of(name, by_path) or "", [])
        for module in owners:
            own = module.part.of_weight if name == module.weight_name else module.part.of_output  # the latter: a bias
            yield module.name, _Squares(_square(own(new) - own(old)), _square(own(old)))
        if not owners:
            yield "", _Squares(_square(new - old), _square(old))


def _adapter_changes(
    model: PeftModel, before: Snapshot, modules: Sequence[ProjectionModule], known_squares: dict[str, float]
) -> Iterator[tuple[str, _Squares]]:
    """Yield each adapted module and the squared norms of the change of scale·B·A and of the base weight."""
    layers = {own_name(name): layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    now = {name: whole(parameter).to("cpu") for name, parameter in parameters_by_name(model) if ".lora_" in name}
    paths = {adapted: path for path, adapted in adapter_layers(model).items()}
    for module in modules:
        path = paths.get(module.path, "")
        if path not in layers:
            continue
        layer = layers[path]
        changes = [
            float(layer.scaling[name]) * (_update(layer, now, path, name) - _update(layer, before, path, name))
            for name in layer.active_adapters
            if f"{path}.lora_A.{name}.weight" in now
        ]
        if not changes:
            continue
        own = module.part.of_output(sum(changes[1:], changes[0]).mT)
        if module.name not in known_squares:
            known_squares[module.name] = _square(module.part.of_weight(_base_weight(layer)))
        yield module.name, _Squares(_square(own), known_squares[module.name])


def _base_weight(layer: LoraLayer) -> Tensor:
    """Return the weight that a layer adapts, whole and as it computes: from shards, and from packed bits."""
    found: Any = (
        layer.get_param() if isinstance(layer, ParamWrapper) else dequantize_module_weight(layer.get_base_layer())
    )
    return whole(found)


def _update(layer: LoraLayer, values: Snapshot, path: str, adapter: str) -> Float[Tensor, "*expert outputs inputs"]:
    """Return B·A of an adapter; for stacked experts that of each, whose ranks PEFT keeps in one A and one B."""
    down, up = (values[f"{path}.lora_{half}.{adapter}.weight"].double() for half in "AB")
    experts = getattr(layer, "num_experts", 1)
    if experts == 1:
        return up @ down
    # In A the experts are the outer axis of the joint rank, in B the inner one.
    return up.unflatten(1, (-1, experts)).permute(2, 0, 1) @ down.unflatten(0, (experts, -1))


def _square(values: Float[Tensor, "*shape"]) -> float:
    return float(values.double().square().sum())


def _norm(squares: Iterable[_Squares]) -> UpdateNorm | None:
    found = list(squares)
    if not found:
        return None
    update, weight = math.fsum(one.update for one in found), math.fsum(one.weight for one in found)
    return UpdateNorm(absolute=math.sqrt(update), relative=math.sqrt(update / weight) if weight else 0.0)
