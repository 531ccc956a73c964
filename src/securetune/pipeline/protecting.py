"""`securetune protect`: the directions of `protected-subspace`, gathered without a training."""

from __future__ import annotations

from pathlib import Path

from securetune import models
from securetune.artifacts import RobustModules, SavedSubspaces, read_artifact
from securetune.config import ProtectConfig, TrainingSettings
from securetune.defenses import DefenseContext, ParameterSets
from securetune.defenses.protected_subspace import MANIFEST, ProtectedSubspace, require_plain_weights
from securetune.errors import ConfigError, InputError, ProblemList
from securetune.models import ChatModel, map_modules
from securetune.training.robust_choice import check_made_for, require_sensitivities

_OF_TRAINING = ("phases", "other_rate", "subspaces")


def protect(config: ProtectConfig, out: Path) -> SavedSubspaces:
    """Gather directions into a folder; a folder that holds these very ones already is left as it is.

    Args:
        config: The model, the options of `protected-subspace`, and the manifest if they need one.
        out: The folder.

    Raises:
        InputError: With every problem that can be found before the model is loaded; or if the folder holds others.
    """
    defense, manifest = _checked(config, out)
    chat = models.load(config.model)
    if manifest is not None:
        check_made_for(manifest, chat.identity, chat.model, str(config.training.modules))
    context = _context(chat, manifest)
    chosen = defense.modules_to_protect(context)
    require_plain_weights(chat.model, chosen)
    if (out / MANIFEST).exists():
        _, gathered = defense.wanted(chat.model, chosen, context)
        if read_artifact(out / MANIFEST, SavedSubspaces).key != gathered.key:
            raise ConfigError(f"{out}: holds other directions. Choose another folder, or delete this one.")
    defense.found_subspaces(chat.model, chosen, context, out)
    return read_artifact(out / MANIFEST, SavedSubspaces)


def _checked(config: ProtectConfig, out: Path) -> tuple[ProtectedSubspace, RobustModules | None]:
    """Check everything but the weights; return the method, and the manifest if one is named."""
    problems = ProblemList()
    problems.found += models.check_model(config.model)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).exists())):
        problems.found.append(f"{out}: the output must be a new folder, or one that this command wrote")
    options, defense, manifest = config.training.method_options, None, None
    if idle := [name for name in _OF_TRAINING if name in options]:
        problems.found.append(f"training.method_options: {', '.join(idle)} is for the training; leave it out here")
    with problems.collect():
        defense = ProtectedSubspace(options)
        if defense.own.energy == 0:
            raise ConfigError("training.method_options.energy must be above 0 to gather directions; got 0")
        defense.prompts_used(config.model.name)
    with problems.collect():
        if config.training.modules is not None:
            manifest = read_artifact(Path(config.training.modules), RobustModules)
    if defense is not None and manifest is None and defense.needs_manifest and config.training.modules is None:
        problems.found.append("protect: sensitive and energy_by: sensitivity need the robust modules. Give --modules.")
    elif defense is not None and manifest is not None:
        with problems.collect():
            require_sensitivities(manifest, defense, str(config.training.modules))
    problems.raise_if_any(InputError)
    assert defense is not None
    return defense, manifest


def _context(chat: ChatModel, manifest: RobustModules | None) -> DefenseContext:
    modules = map_modules(chat.model)
    robust = {module.name for module in manifest.modules} if manifest else set()
    inside = tuple(module.weight_name for module in modules if module.name in robust)
    outside = tuple(module.weight_name for module in modules if module.name not in robust)
    return DefenseContext(
        TrainingSettings(method=ProtectedSubspace.name),
        learning_rate=1.0,
        main_steps=1,
        parameters=ParameterSets(inside, outside),
        modules=modules,
        tokenizer=chat.tokenizer,
        model_name=chat.settings.name,
        sensitivities=manifest.sensitivities if manifest else {},
    )
