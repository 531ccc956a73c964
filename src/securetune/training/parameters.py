"""Which parameters belong to the robust modules, which to the others, under full tuning and under LoRA alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn

from securetune.config import TrainingSettings
from securetune.defenses import Defense, ParameterSets
from securetune.errors import ArtifactError, ConfigError
from securetune.models import ProjectionModule
from securetune.models.layer_weights import plain_path
from securetune.models.parameter_names import own_name


def owner_of(parameter_name: str, module_paths: Collection[str]) -> str | None:
    """Return the path of the modules that a parameter belongs to, or None for embeddings, norms and the head.

    PEFT puts a prefix before the path and the adapter's own names after it: a search for
    `layers.0.self_attn.q_proj.weight` would match none of its parameters, without any error.

    Example:
        >>> owner_of("base_model.model.layers.0.up_proj.lora_A.default.weight", {"layers.0.up_proj"})
        'layers.0.up_proj'
    """
    path = plain_path(parameter_name).removesuffix("_bias")  # experts: `….experts.down_proj_bias`
    while path and path not in module_paths:
        path = path.rpartition(".")[0]
    return path or None


def adapter_layers(model: nn.Module) -> dict[str, str]:
    """Return for each LoRA layer in a model its path and, in the plain model, the path of what it adapts.

    PEFT wraps experts once for each of their parameters, one wrapper inside the other; the names of the adapters do not
    tell which parameter they are for (`….experts.base_layer.lora_A.default.weight`), only the wrappers do.
    """
    found = {}
    for name, layer in model.named_modules():
        path = own_name(name)
        if isinstance(layer, ParamWrapper):
            found[path] = f"{plain_path(path)}.{layer.parameter_name}".removesuffix(".weight")
        elif isinstance(layer, LoraLayer):
            found[path] = plain_path(path)
    return found


def owners_of(model: nn.Module, module_paths: Collection[str]) -> dict[str, str | None]:
    """Return for each parameter the path of the modules it belongs to, as `owner_of` does; of experts' adapters too."""
    adapted = adapter_layers(model)
    return {
        name: owner_of(adapted.get(name.partition(".lora_")[0], name), module_paths)
        for name, _ in model.named_parameters()
    }


def split_parameters(
    model: nn.Module,
    modules: Sequence[ProjectionModule],
    robust_names: Collection[str] | None,
    settings: TrainingSettings,
    defense: Defense,
) -> ParameterSets:
    """Split the trainable parameters into those of the robust modules and all others.

    Args:
        model: The model to train; what requires a gradient now is what may train.
        modules: Its projections.
        robust_names: Names of the modules in Mods_Rob, or None: everything is the rest.
        settings: For `other_parameters`.
        defense: One that needs a manifest needs both sets.

    Raises:
        ArtifactError: If there are names of modules that the model does not have, or a part of a parameter only.
        ConfigError: If a set that the defense needs has no parameter.
    """
    paths = {module.path for module in modules}
    robust_modules = set(robust_names or ())
    _require_whole_parameters(modules, robust_modules)
    robust_paths = {module.path for module in modules if module.name in robust_modules}
    robust, rest = [], []
    owners = owners_of(model, paths)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = owners[name]
        if owner in robust_paths or (owner is None and settings.other_parameters == "robust"):
            robust.append(name)
        elif owner is not None or settings.other_parameters == "rest":
            rest.append(name)
    sets = (
        ParameterSets(tuple(robust), tuple(rest))
        if robust_names is not None
        else ParameterSets((), tuple(robust + rest))
    )
    _require_sets(sets, robust_modules, settings, defense)
    return sets


def _require_whole_parameters(modules: Sequence[ProjectionModule], robust_modules: set[str]) -> None:
    """Refuse modules that are not there, and those that share a parameter with others that are not to be robust."""
    unknown = sorted(robust_modules - {module.name for module in modules})
    if unknown:
        raise ArtifactError(
            f"the manifest names {len(unknown)} modules that the model does not have: {', '.join(unknown[:3])}"
        )
    split = {m.path for m in modules if m.name in robust_modules} & {
        m.path for m in modules if m.name not in robust_modules
    }
    for path in sorted(split)[:1]:
        inside, outside = (
            [m.type for m in modules if m.path == path and (m.name in robust_modules) == among]
            for among in (True, False)
        )
        raise ArtifactError(
            f"the manifest names {' and '.join(inside)} of {path} but not {' and '.join(outside)}, which are in the "
            f"same weight, and a part of a weight cannot be trained by itself (so for {len(split)} weights). Name all "
            "of its parts or none; `securetune search` keeps them together."
        )


def _require_sets(sets: ParameterSets, robust_modules: set[str], settings: TrainingSettings, defense: Defense) -> None:
    if defense.needs_manifest and not sets.robust:
        raise ConfigError(
            f"{defense.name}: none of the manifest's {len(robust_modules)} modules has a trainable parameter"
            + (f"; lora.target_types are {', '.join(settings.lora.target_types)}" if settings.tune == "lora" else "")
        )
    if defense.needs_manifest and not sets.rest:
        raise ConfigError(
            f"{defense.name}: the manifest covers everything that may train, so nothing is left to protect. Use a "
            'smaller search.target_fraction, or method "ift".'
        )
    if not sets.all:
        raise ConfigError("nothing may train: no parameter requires a gradient")
