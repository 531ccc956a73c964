"""What a trainer of TRL's does differently in a phase of a method: the groups of its optimizer, and its loss."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from securetune.defenses import Defense, Phase
from securetune.errors import ConfigError
from securetune.models.parameter_names import own_name, parameters_by_name
from securetune.training.step_moments import StepMoments


class PhaseOfMethod(StepMoments):
    """A trainer's optimizer with the groups of a phase, and its loss with the method's part.

    Attributes:
        phase: What trains, at which rates. Set before the optimizer is made.
        defense: The method.
    """

    @property
    def network(self) -> PreTrainedModel | PeftModel:
        """The model itself, without any wrapper of a distributed engine."""
        assert isinstance(self.model, PreTrainedModel | PeftModel)
        return self.model

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the trainer's loss, changed by the method while training."""
        found: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if return_outputs or not model.training:
            return found
        return self.defense.adjust_loss(found, self.network, inputs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer that the user or the arguments name, with the phase's groups.

        Raises:
            ConfigError: If a name of a group matches no trainable parameter, or one is in two groups or in none.
        """
        if self.optimizer is None:
            kind, arguments = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(self._optimizer_groups(model or self.network), **arguments)
            if type(self.defense).after_step is not Defense.after_step:
                self.optimizer.register_step_post_hook(self._after_step)
        assert isinstance(self.optimizer, torch.optim.Optimizer)
        return self.optimizer

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.defense.after_step(self.network, optimizer)

    def _send_telemetry(self) -> None:
        """Send none, whatever the environment says: TRL would tell its makers of each trainer that is made."""

    def current_rates(self) -> dict[str, float]:
        """Return each group's learning rate; the Trainer's own log shows that of the first only."""
        groups = getattr(self.optimizer, "param_groups", [])
        return {group["group_name"]: float(group["lr"]) for group in groups}

    def _optimizer_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        parameters = {name: parameter for name, parameter in parameters_by_name(model) if parameter.requires_grad}
        decayed = {own_name(name) for name in self.get_decay_parameter_names(model)}
        _require_exact_cover(self.phase, set(parameters))
        groups = []
        for group in self.phase.groups:
            for decays in (True, False):
                names = [name for name in group.parameter_names if (name in decayed) == decays]
                if names:  # DeepSpeed fails on an empty group
                    groups.append(
                        {
                            "params": [parameters[name] for name in names],
                            "lr": group.learning_rate,
                            "weight_decay": self.args.weight_decay if decays else 0.0,
                            "group_name": group.name,
                        }
                    )
        return groups


def trained_names(phase: Phase) -> frozenset[str]:
    """Return the names of all parameters of a phase's groups."""
    return frozenset(name for group in phase.groups for name in group.parameter_names)


def freeze_all_but(model: nn.Module, names: frozenset[str]) -> None:
    """Let the named parameters require a gradient, and no other."""
    for name, parameter in parameters_by_name(model):
        parameter.requires_grad_(name in names)


def _require_exact_cover(phase: Phase, trainable: set[str]) -> None:
    listed = [name for group in phase.groups for name in group.parameter_names]
    for group in phase.groups:
        missing = [name for name in group.parameter_names if name not in trainable]
        if missing or not group.parameter_names:
            raise ConfigError(
                f'phase "{phase.name}": group "{group.name}" must match trainable parameters only; it has '
                f"{len(group.parameter_names)} names, of which {len(missing)} match none, such as {missing[:1]}"
            )
    if len(listed) != len(set(listed)) or set(listed) != trainable:
        raise ConfigError(f'phase "{phase.name}": each trainable parameter must be in exactly one group')
