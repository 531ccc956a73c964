"""Which modules count as robust, however the user said it: a manifest, its path, or module paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from securetune.artifacts import ModelIdentity, RobustModules, read_artifact
from securetune.config import ModelSettings
from securetune.defenses import Defense
from securetune.errors import ArtifactError, ConfigError
from securetune.models import ProjectionModule, check_same_model, identify
from securetune.training.adapters import plain_model


def chosen_modules(
    choice: Any,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    modules: Sequence[ProjectionModule],
) -> list[str]:
    """Return the names of the modules that a user's choice means.

    Args:
        choice: A manifest, its path, or module paths; the path of a fused weight means all of its parts.
        model: The model to tune; may be wrapped by PEFT.
        tokenizer: The model's.
        modules: Its projections.

    Raises:
        ArtifactError: If the manifest cannot be read or was made for another model, or a path is no projection of it.
        ConfigError: If the choice is none of these.
    """
    manifest = manifest_of(choice)
    if manifest is not None:
        where = str(choice) if isinstance(choice, str | Path) else "robust_modules"
        _require_made_for(manifest, model, tokenizer, where)
        return [module.name for module in manifest.modules]
    if isinstance(choice, list | tuple) and all(isinstance(name, str) for name in choice):
        return _listed(list(choice), modules)
    raise ConfigError(
        f"robust_modules must be a manifest, its path, a list of module paths or auto; got {type(choice).__name__}"
    )


def manifest_of(choice: Any) -> RobustModules | None:
    """Return the manifest that a user's choice is or names, or None if it is a list of module paths."""
    if isinstance(choice, str | Path):
        return read_artifact(Path(choice), RobustModules)
    return choice if isinstance(choice, RobustModules) else None


def _require_made_for(
    manifest: RobustModules, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    plain = plain_model(model)
    here = identify(plain, tokenizer, ModelSettings(name=plain.name_or_path or type(plain).__name__))
    check_made_for(manifest, here, plain, where)


def require_sensitivities(manifest: RobustModules | None, defense: Defense, where: str) -> None:
    """Refuse a manifest without the modules' sensitivities for a method that goes by them.

    Raises:
        ArtifactError: If it has none.
    """
    if defense.needs_sensitivities and (manifest is None or not manifest.sensitivities):
        raise ArtifactError(
            f'{where}: method "{defense.name}" with energy_by: sensitivity needs a manifest with the sensitivities of '
            "the modules; got none. Make one with `securetune search`, or take energy_by: uniform."
        )


def check_made_for(manifest: RobustModules, here: ModelIdentity, network: nn.Module, where: str) -> None:
    """Refuse a manifest that was made for another model; packed weights of a quantized one are not compared.

    Args:
        manifest: Mods_Rob with its model's identity.
        here: The identity of the model to train.
        network: That model.
        where: What the manifest is called in a message.

    Raises:
        ArtifactError: If architecture, weights or chat template differ.
    """
    if getattr(network, "is_quantized", False):  # packed weights are others, and fewer, than those that were analyzed
        same = {"parameter_count": here.parameter_count, "weights_fingerprint": here.weights_fingerprint}
        manifest = manifest.model_copy(update={"model": manifest.model.model_copy(update=same)})
    check_same_model(manifest.model, here, where)


def _listed(names: list[str], modules: Sequence[ProjectionModule]) -> list[str]:
    known = {module.name for module in modules} | {module.path for module in modules}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ArtifactError(
            f"robust_modules: {len(unknown)} of {len(names)} paths are no projection of this model, such as "
            f'"{unknown[0]}"; its projections are called like "{modules[0].name}" and "{modules[-1].name}"'
        )
    return [module.name for module in modules if module.name in names or module.path in names]
