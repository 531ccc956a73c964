"""Protected subspace: the update of each projection has no effect on the inputs that harmful requests give it.

For a projection W let U be the leading eigenvectors of the uncentred second moment of its inputs over harmful requests
and the start model's own answers to them. After each optimizer step W ← W − (W U − W₀ U) Uᵀ, so that always W U = W₀ U:
the update W − W₀ equals (W − W₀)(I − U Uᵀ) without W₀ having to be kept. For LoRA A ← A − (A U) Uᵀ, with which
(W₀ + s·B·A) U = W₀ U; the adapter stays an adapter, and merges as any other. U and W₀ are the start model's in every
phase.

With `tail_pull` the directions v beyond U count too, the less the less they hold: each step takes back the share
tail_pull · λ_v / λ_U of what the update is there, where λ are eigenvalues and λ_U is that of the last direction of U. A
hard cut alone leaves the remaining energy to the update, and in a long training a little of it is enough. It is the
proximal step of a penalty on how far the outputs on harmful requests move, as L2-SP's is on how far the weights do.

Related work: gradient projection memory (arXiv 2103.09762) projects gradients away from the inputs of earlier tasks,
and AlphaEdit (2410.02355) edits away from the inputs of kept knowledge; GuardSpace (2510.14301) splits the weights by a
covariance of harmful prompts and projects the adapters. Ours projects the accumulated update, after the optimizer and
its weight decay, so that Adam's scaling cannot turn it back; it takes the refusals into the second moment, and works on
all parameters and on LoRA. Scaled gradient projection (2302.01386) scales gradients by the importance of directions;
`tail_pull` pulls the accumulated update back instead, so that it cannot add up over many steps. Not part of it:
GuardSpace's initialisation of the adapters from the covariance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor

from securetune.artifacts import ModelIdentity, parameter_path, sha256_json
from securetune.config import ModelSettings, Settings, TrainingSettings
from securetune.data.prompts import Prompt
from securetune.defenses.base import Defense, DefenseContext, Phase
from securetune.defenses.protected_subspace.confined_weights import (
    anchored_weights,
    confined_weights,
    holder_path,
    input_width,
    share_anchors,
)
from securetune.defenses.protected_subspace.confinement import ConfinedWeight
from securetune.defenses.protected_subspace.energies import module_energies
from securetune.defenses.protected_subspace.full_float32 import full_float32
from securetune.defenses.protected_subspace.gathering import (
    Subspaces,
    gather_subspaces,
    prompts_hash,
    shared_subspaces,
)
from securetune.defenses.protected_subspace.options import ProtectedSubspaceOptions
from securetune.defenses.protected_subspace.phases import protected_phases, schedule_of
from securetune.defenses.protected_subspace.saved_subspaces import (
    FOLDER,
    Gathered,
    kept_subspaces,
    read_saved,
    read_saved_prompts,
    require_enough,
    save_subspaces,
    use_saved,
)
from securetune.defenses.protected_subspace.spectrum import InputSpectrum
from securetune.defenses.registry import register_defense
from securetune.errors import ConfigError, ProblemList
from securetune.models import (
    ProjectionModule,
    check_model,
    check_same_model,
    check_same_model_in_files,
    identify,
    is_quantized,
)
from securetune.models.parameter_names import parameters_by_name
from securetune.processes import joined_processes

_STEPS_TO_PULL = "steps_to_pull"


@register_defense("protected-subspace")
class ProtectedSubspace(Defense):
    """Protected subspace: no update in the directions in which harmful requests enter a projection.

    Everything trains in one phase, or in the phases and groups of SWAT or ML-LR; embeddings, norms and head, which are
    not protected, more slowly. Biases of protected projections are frozen, because they would move the outputs on every
    input. Experts that are stacked in one parameter, and DeepSpeed, are refused.
    """

    source = "after arXiv 2103.09762, 2302.01386, 2410.02355 and 2510.14301"
    options_type: ClassVar[type[Settings]] = ProtectedSubspaceOptions

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._schedule = schedule_of(self.own.phases)
        self.needs_sensitivities = self.own.energy_by == "sensitivity" and self.own.energy > 0
        self.needs_manifest = (
            self.own.protect == "sensitive"  # the robust modules are then left unprotected
            or self._schedule.needs_manifest
            or self.needs_sensitivities
        )
        self._subspaces: Subspaces | None = None
        self._confined: list[ConfinedWeight] = []
        self._steps_to_pull = 0

    @property
    def own(self) -> ProtectedSubspaceOptions:
        """The options, with their type."""
        assert isinstance(self.options, ProtectedSubspaceOptions)
        return self.options

    @property
    def subspaces(self) -> Subspaces | None:
        """What is protected; known once the training has begun."""
        return self._subspaces

    def phases(self, context: DefenseContext) -> list[Phase]:
        """Return the phases: projections at their rates, everything else at `other_rate` times its own."""
        paths = tuple(f"{holder_path(module)}." for module in context.modules)

        def is_projection(name: str) -> bool:
            return name.startswith(paths) or not paths  # a plan does not know the modules yet

        return protected_phases(self._schedule, context, is_projection, self.own.other_rate, self._biases(context))

    def phase_steps(self, main_steps: int, settings: TrainingSettings) -> dict[str, int]:
        """Return the steps of the phases of SWAT, ML-LR or plain tuning."""
        return self._schedule.phase_steps(main_steps, settings)

    def before_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Gather the directions, and take the adapters out of them.

        In a training of several processes the main one does it for all: under FSDP2 it alone has the weights yet, and
        replicas need the very same directions.

        Raises:
            ConfigError: If the model's weights are shards, stacked experts or DoRA's, or there is no tokenizer.
        """
        self._steps_to_pull = 0
        if self.own.energy == 0:
            return
        if _is_sharded(model):
            _require_known(self._subspaces)
            return
        chosen = self.modules_to_protect(context)
        require_plain_weights(model, chosen)
        processes = joined_processes()
        found: Subspaces | None = None
        with processes.failing_together(), full_float32():
            if processes.is_main:
                folder = context.folder / FOLDER if context.folder else None
                found = self.found_subspaces(model, chosen, context, folder)
                self._confined = anchored_weights(model, chosen, found, self.own.tail_pull)
        self._subspaces = shared_subspaces(found, processes)
        if not processes.is_main:
            self._confined = confined_weights(model, chosen, self._subspaces, self.own.tail_pull)
        share_anchors(self._confined, processes)
        self._take_out(model, adapters_only=True)

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take out of every protected projection that trains what the step did to its protected inputs.

        A step at rate 0 has moved nothing. torch takes one where it reads an optimizer's state back into shards, and
        what that wrote into the weights, if only a rounding, an uninterrupted training would not have.
        """
        if any(float(group["lr"]) > 0 for group in optimizer.param_groups):
            self._steps_to_pull += 1
            self._take_out(model, self._pulled(self._steps_to_pull >= self.own.pull_every))

    def after_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Pull for the steps since the last pull."""
        if self._steps_to_pull:
            self._take_out(model, self._pulled(is_due=True))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return how many steps have not been pulled for."""
        return {_STEPS_TO_PULL: torch.tensor(self._steps_to_pull)} if self.own.pull_every > 1 else {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back how many steps have not been pulled for."""
        self._steps_to_pull = int(state[_STEPS_TO_PULL])

    def _pulled(self, is_due: bool) -> int:
        """Return for how many steps to pull now, and count from here."""
        steps = self._steps_to_pull if is_due else 0
        self._steps_to_pull -= steps
        return steps

    def _take_out(self, model: nn.Module, steps: int = 1, adapters_only: bool = False) -> None:
        """Confine what trains; what is frozen has not moved, and must not take up a rounding error."""
        parameters = dict(parameters_by_name(model)) if self._confined else {}
        with full_float32():
            for weight in self._confined:
                parameter = parameters[weight.name]
                if parameter.requires_grad and not parameter.is_meta and (weight.is_adapter or not adapters_only):
                    weight.confine(parameter, steps)

    def prompts_used(self, model_name: str) -> list[Prompt]:
        """Return the requests whose directions are protected; none at energy 0.

        Raises:
            InputError: If the file of `prompts`, or the folder of `subspaces`, cannot be read.
        """
        if self.own.energy == 0:
            return []
        if self.own.subspaces is not None:
            return read_saved_prompts(Path(self.own.subspaces))
        return self.own.requests(model_name)

    def check(self, model: ModelSettings) -> None:
        """Refuse a folder of directions that is broken, another model's, or gathered for less than is asked for.

        Energies by sensitivity, and which modules are robust, are known when the training begins; it is asked then.

        Raises:
            InputError: If it is such.
        """
        if self.own.subspaces is None or self.own.energy == 0:
            return
        saved = read_saved(Path(self.own.subspaces))
        is_uniform = self.own.protect == "all" and not self.needs_sensitivities
        energies = dict.fromkeys(saved.modules, self.own.energy) if is_uniform else {}
        problems = ProblemList()
        if not check_model(model) and not is_quantized(model):  # told elsewhere; packed weights are compared later
            with problems.collect():
                check_same_model_in_files(saved.model, model, self.own.subspaces)
        with problems.collect():
            require_enough(Path(self.own.subspaces), saved, energies, self.own.tail_pull)
        problems.raise_if_any()

    def evidence(self) -> dict[str, Any]:
        """Return how many directions of each projection are protected, and the share of the energy that they hold."""
        if self._subspaces is None:
            return {}
        modules = {
            name: {
                "directions": (rank := spectrum.rank_for(energy)),
                "pulled_directions": len(spectrum.shares(energy, self.own.tail_pull)) - rank,
                "inputs": len(spectrum.vectors),
                "energy": round(energy, 6),
                "energy_held": round(spectrum.held(rank), 6),
                "range_finder": spectrum.finder,
            }
            for name, spectrum, energy in self._by_module()
        }
        return {"protected": modules, "gathered_tokens": self._subspaces.tokens}

    def notes(self) -> list[str]:
        """Say where a sketch holds fewer directions than the energy asks for."""
        held = {name: spectrum.held(len(spectrum.values)) for name, spectrum, _ in self._by_module()}
        short = [name for name, _, energy in self._by_module() if held[name] < energy - 1e-6]
        if not short:
            return []
        least = min(short, key=lambda name: held[name])
        return [
            f"protected-subspace: the sketch holds too few directions for the energy at {len(short)} projections, so "
            f"that less is protected, the least at {least}: {held[least]:.1%}. Raise sketch_size, or take "
            "range_finder: exact."
        ]

    def _by_module(self) -> list[tuple[str, InputSpectrum, float]]:
        """Return each protected projection's name, directions and energy."""
        found = self._subspaces
        if found is None:
            return []
        return [(name, found.spectra[parameter_path(name)], energy) for name, energy in found.energies.items()]

    def found_subspaces(
        self, model: nn.Module, modules: Sequence[ProjectionModule], context: DefenseContext, folder: Path | None
    ) -> Subspaces:
        """Return the directions: those in the folder, those of `subspaces`, or gathered from the model.

        Args:
            model: The start model.
            modules: The projections to protect.
            context: The training.
            folder: Where they are kept, for a training that goes on; None: nowhere.

        Raises:
            InputError: If there is no tokenizer, no sensitivity where energies go by it, or `subspaces` does not fit.
        """
        energies, gathered = self.wanted(model, modules, context)
        found = kept_subspaces(folder, gathered)
        if found is not None:
            return found
        if self.own.subspaces is not None:
            widths = {module.path: input_width(module, model) for module in modules}
            found = use_saved(Path(self.own.subspaces), widths, energies, self.own.tail_pull)
        else:
            assert context.tokenizer is not None
            found = gather_subspaces(model, context.tokenizer, gathered.prompts, modules, energies, self.own)
        if folder is not None:
            save_subspaces(folder, found, gathered)
        return found

    def wanted(
        self, model: nn.Module, modules: Sequence[ProjectionModule], context: DefenseContext
    ) -> tuple[dict[str, float], Gathered]:
        """Return the energy of each projection, and what its directions are to be gathered from.

        Raises:
            InputError: As `found_subspaces`.
        """
        if context.tokenizer is None:
            raise ConfigError("protected-subspace needs the model's tokenizer (processing_class) to render its prompts")
        sensitivities = context.sensitivities if self.needs_sensitivities else None
        names = [module.name for module in modules]
        energies = module_energies(names, self.own.energy, sensitivities, self.own.sensitivity_exponent)
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        name = context.model_name or type(plain).__name__
        identity = identify(plain, context.tokenizer, ModelSettings(name=name))
        source: dict[str, Any] = self.own.of_gathering
        if self.own.subspaces is not None:
            saved = read_saved(Path(self.own.subspaces))
            check_same_model(_comparable(saved.model, identity, plain), identity, self.own.subspaces)
            source = {"subspaces": saved.weights_hash}
        prompts = self.prompts_used(context.model_name)
        weights, template = identity.weights_fingerprint, identity.chat_template_hash
        tail = [self.own.tail_pull] if self.own.tail_pull else []
        key = sha256_json([weights, template, prompts_hash(prompts), source, energies, *tail])
        return energies, Gathered(key, identity, prompts, self.own)

    def modules_to_protect(self, context: DefenseContext) -> list[ProjectionModule]:
        """Return all projections, or those outside Mods_Rob."""
        if self.own.protect == "all":
            return list(context.modules)
        robust = tuple(context.parameters.robust)
        return [
            module
            for module in context.modules
            if not any(name.startswith(f"{holder_path(module)}.") for name in robust)
        ]

    def _biases(self, context: DefenseContext) -> set[str]:
        if self.own.energy == 0:
            return set()
        return {f"{module.weight_name.rpartition('.')[0]}.bias" for module in self.modules_to_protect(context)} & set(
            context.parameters.all
        )


def _comparable(saved: ModelIdentity, here: ModelIdentity, model: nn.Module) -> ModelIdentity:
    """Leave out the weights where those here are packed, as a quantized model's are."""
    if not getattr(model, "is_quantized", False):
        return saved
    same = {"parameter_count": here.parameter_count, "weights_fingerprint": here.weights_fingerprint}
    return saved.model_copy(update=same)


def _require_known(subspaces: Subspaces | None) -> None:
    """Go on with the directions of an earlier `train()` of the same trainer, which has left the model in shards.

    Raises:
        ConfigError: If there was none.
    """
    if subspaces is None:
        raise ConfigError(
            "protected-subspace looks at the start model's whole weights, and these are sharded already (FSDP2). Give "
            "the trainer the model as it is loaded."
        )


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def require_plain_weights(model: nn.Module, modules: Sequence[ProjectionModule]) -> None:
    """Refuse what cannot be protected.

    Raises:
        ConfigError: If there are stacked experts among the modules, or DoRA's magnitudes in the model.
    """
    problems = []
    if any(module.of_experts for module in modules):
        problems.append("protected-subspace cannot protect stacked experts, whose inputs differ from expert to expert")
    if any("lora_magnitude" in name for name, _ in model.named_parameters()):
        problems.append("protected-subspace works with LoRA, not with DoRA, whose magnitudes change every output")
    if problems:
        raise ConfigError(problems)
