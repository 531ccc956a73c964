"""What a defense is: the moments at which it may act, and how it announces itself.

A defense is a class in a folder of its own under `defenses/`, with `@register_defense("name")` above it. It overrides
the moments at which it acts; all others do nothing. The moments, in the order in which a run reaches them:

1. `prepare_data`: the training conversations, for a method that rewrites them; defenses that only act on the data
   derive from `DataDefense`, whose `change` is told the model and says what it did;
2. `check` and `alignment_rows`: what it needs besides them, before any weights are loaded;
3. `before_training`: the loaded model, adapters in place;
4. `phases`: which parameters train, at which rate, for how long;
5. `before_step`: every optimizer step, before its batches;
6. `adjust_loss`: every batch of it;
7. `adjust_gradients`: the gradients of all its batches, before they are clipped;
8. `after_step`: the weights after it;
9. `after_training`: the weights after the last phase;
10. `prepare_messages`: what the tuned model is shown at generation; such defenses derive from `GenerationDefense`.

What it remembers from step to step it hands out in `state_dict`, which every checkpoint holds, and takes back in
`load_state_dict`. `notes` and `evidence` are what a user should read of it afterwards.

A defense says what should happen; `securetune.training` does it, and checks that it was done as said. A moment that is
not overridden costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from securetune.config import ModelSettings, Settings, TrainingSettings, validate
from securetune.data.conversations import Conversation, Message
from securetune.data.prompts import Prompt
from securetune.defenses.optimizer_step import OptimizerStep
from securetune.defenses.weight_sources import TensorReader
from securetune.models import ProjectionModule

MAIN_PHASE = "main"


@dataclass(frozen=True)
class ParameterSets:
    """The trainable parameters of a model, split by the manifest; names as in `named_parameters()`.

    Under LoRA a module's parameters are its adapter's.

    Attributes:
        robust: Of the modules in Mods_Rob (plus embeddings, norms and head with `other_parameters: robust`).
        rest: Of all other modules (plus embeddings, norms and head with `other_parameters: rest`).
    """

    robust: tuple[str, ...]
    rest: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Everything that may train."""
        return self.robust + self.rest


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one learning rate.

    Attributes:
        name: For the log, such as `robust`.
        parameter_names: As in `named_parameters()`; at least one.
        learning_rate: Peak rate of the group (> 0); the phase's schedule multiplies it.
    """

    name: str
    parameter_names: tuple[str, ...]
    learning_rate: float


@dataclass(frozen=True)
class Phase:
    """One complete training run: its own optimizer, schedule and data order; parameters in no group are frozen.

    Attributes:
        name: Unique within the run, such as `warmup`; also the name of its folder.
        steps: Optimizer steps (≥ 1).
        groups: At least one.
        seed_offset: Added to the run's seed for the order of the data, so that two phases do not see the same order.
            0 for the main phase of every method: methods are compared on the same order.
        alignment_steps: Optimizer steps on the method's own rows (≥ 0), taken between the `steps`, which are all on the
            user's rows. The learning-rate schedule goes over both.
    """

    name: str
    steps: int
    groups: tuple[ParameterGroup, ...]
    seed_offset: int = 0
    alignment_steps: int = 0


@dataclass(frozen=True)
class DefenseContext:
    """What a defense may know when it acts.

    Attributes:
        settings: The run's settings.
        learning_rate: Resolved base rate.
        main_steps: Resolved optimizer steps of the main phase.
        parameters: The trainable parameters, split by the manifest.
        sources: Other models' weights by role, for defenses on weights: a parameter's name → its values there.
        modules: The model's projections, as it is now, with adapters if there are any.
        tokenizer: The model's, or None where nothing is rendered, as in a plan.
        model_name: The start model's name as the user gave it.
        rows: The training rows as they are trained on, each with `input_ids`; empty where there are none yet.
        sensitivities: Module → how far the logit of harm shifts when it alone is perturbed, from the manifest; empty
            where that has none.
        folder: Where the training writes, for what a method keeps; None: nowhere.
    """

    settings: TrainingSettings
    learning_rate: float
    main_steps: int
    parameters: ParameterSets
    sources: Mapping[str, TensorReader] = field(default_factory=dict)
    modules: Sequence[ProjectionModule] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    model_name: str = ""
    rows: Iterable[Mapping[str, Any]] = ()
    sensitivities: Mapping[str, float] = field(default_factory=dict)
    folder: Path | None = None


class NoOptions(Settings):
    """For methods that have no settings of their own."""


class Defense:
    """Base of all defenses; as it stands it changes nothing.

    Attributes:
        name: What the user types; set by `register_defense`.
        needs_manifest: Whether it cannot run without a manifest of robust modules.
        adapters_only: Whether it works on adapters, and cannot tune all parameters.
        needs_sensitivities: Whether that manifest must hold the modules' sensitivities.
        stage: Where in a model's life it acts.
        purpose: `defense`; `control`, which a defense has to beat; or `attack`, for experiments on defenses alone.
        needs: What it needs besides the model, the data and a manifest, in a few words.
        source: The paper it comes from.
        options_type: The class of its own settings (`training.method_options`).
        options: Its own settings.

    Raises:
        ConfigError: If it has no such option, or a value is out of range.
    """

    name: ClassVar[str]
    needs_manifest: bool = False
    adapters_only: ClassVar[bool] = False
    needs_sensitivities: bool = False
    stage: ClassVar[Literal["data", "training", "weights", "generation"]] = "training"
    purpose: ClassVar[Literal["defense", "control", "attack"]] = "defense"
    needs: ClassVar[str] = ""
    source: ClassVar[str] = ""
    options_type: ClassVar[type[Settings]] = NoOptions

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = validate(self.options_type, dict(options or {}), at="method_options")

    def prepare_data(self, conversations: Sequence[Conversation], settings: TrainingSettings) -> Sequence[Conversation]:
        """Change the training data: add, drop or rewrite rows."""
        return conversations

    def prompts_used(self, model_name: str) -> Sequence[Prompt]:
        """Return the prompts that the method looks at besides the data, so that nobody reports on them.

        Raises:
            DataError: If they cannot be read.
        """
        return ()

    def check(self, model: ModelSettings) -> None:
        """Refuse what is known to go wrong before weights are loaded.

        Raises:
            InputError: With every problem.
        """

    def alignment_rows(self, model_name: str) -> Mapping[str, Sequence[Conversation]]:
        """Return the method's own conversations, by the name under which it asks for batches of them.

        They are encoded as the training data is. Lists of the same length come in the same order.

        Raises:
            DataError: If they cannot be read.
        """
        return {}

    def before_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Look at the model, or change it, before the first phase."""

    def phases(self, context: DefenseContext) -> list[Phase]:
        """Return the phases in their order, at least one."""
        return [plain_phase(context)]

    def phase_steps(self, main_steps: int, settings: TrainingSettings) -> dict[str, int]:
        """Return the optimizer steps of each phase by its name, as `phases` will; known before weights are loaded."""
        return {MAIN_PHASE: main_steps}

    def before_step(self, step: OptimizerStep) -> None:
        """Act before the batches of an optimizer step: all gradients are zero, and the weights may be changed."""

    def adjust_loss(self, loss: Float[Tensor, ""], model: nn.Module, inputs: dict[str, Any]) -> Float[Tensor, ""]:
        """Change the loss of a training step, for instance by a proximal term."""
        return loss

    def adjust_gradients(self, step: OptimizerStep) -> None:
        """Change the gradients of an optimizer step, those of alignment steps too, in place, before they are clipped.

        Every process has the same gradients then.
        """

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Change the weights after an optimizer step, in place; a method that does not override it costs nothing."""

    def after_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Change the weights after the last phase, in place, before they are saved."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has to be in a checkpoint besides weights and optimizer; in full precision, on any device."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave, to go on from there."""

    def notes(self) -> list[str]:
        """Return sentences that a user should read: of what will be done, and after training of what was done."""
        return []

    def evidence(self) -> dict[str, Any]:
        """Return what was found out on the way, as numbers and lists, for `training.json`."""
        return {}

    def prepare_messages(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Change what the tuned model is shown at generation, for instance by a safety prompt.

        Training cannot do this for the user: whoever generates with the tuned model applies it to the messages.
        """
        return messages


def plain_phase(context: DefenseContext) -> Phase:
    """Return the phase of plain fine-tuning: everything at the base rate, the full schedule."""
    group = ParameterGroup("all", context.parameters.all, context.learning_rate)
    return Phase(MAIN_PHASE, context.main_steps, (group,))
