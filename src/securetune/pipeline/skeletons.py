"""A training as it would be, on a model without weights: which parameters train, in which phase, at which rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from securetune.artifacts import RobustModules
from securetune.config import ModelSettings, TrainingSettings
from securetune.defenses import Defense, DefenseContext, ParameterSets, Phase, defense_of
from securetune.models import ProjectionModule, load_skeleton, map_modules
from securetune.training.adapters import add_adapters
from securetune.training.parameters import split_parameters
from securetune.training.train import base_learning_rate
from securetune.training.tuned_model import base_reference


@dataclass(frozen=True)
class TrainingSkeleton:
    """A training without weights.

    Attributes:
        settings: How it would train.
        defense: The method.
        manifest: Mods_Rob, or None.
        modules: The start model's projections.
        network: The model to train, adapters in place, on the meta device.
        parameters: What may train, split by the manifest.
        phases: As the method gives them.
    """

    settings: TrainingSettings
    defense: Defense
    manifest: RobustModules | None
    modules: Sequence[ProjectionModule]
    network: nn.Module
    parameters: ParameterSets
    phases: Sequence[Phase]

    @property
    def robust_modules(self) -> list[ProjectionModule]:
        """Those of the manifest."""
        names = {module.name for module in self.manifest.modules} if self.manifest else set()
        return [module for module in self.modules if module.name in names]


def make_training_skeleton(
    model: ModelSettings, settings: TrainingSettings, manifest: RobustModules | None, main_steps: int
) -> TrainingSkeleton:
    """Build the model on the meta device, and ask the method for its phases.

    Args:
        model: The start model; one in which `check_model` finds no problem.
        settings: How to train.
        manifest: Mods_Rob, or None: everything is the rest.
        main_steps: Optimizer steps of the main phase.

    Raises:
        InputError: If the manifest does not fit the model, or adapters cannot be put where the settings say.
    """
    defense = defense_of(settings)
    plain = load_skeleton(model)
    modules = map_modules(plain)
    network = _prepared(plain, modules, settings, model.name)
    robust_names = [module.name for module in manifest.modules] if manifest else None
    parameters = split_parameters(network, modules, robust_names, settings, defense)
    context = DefenseContext(
        settings, base_learning_rate(settings), main_steps, parameters, modules=map_modules(network)
    )
    return TrainingSkeleton(settings, defense, manifest, modules, network, parameters, defense.phases(context))


def _prepared(
    plain: PreTrainedModel, modules: Sequence[ProjectionModule], settings: TrainingSettings, name: str
) -> nn.Module:
    return add_adapters(plain, modules, settings, base_reference(name)) if settings.tune == "lora" else plain
