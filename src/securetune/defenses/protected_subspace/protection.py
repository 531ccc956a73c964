"""Protected subspace: the update of each projection has no effect on the inputs that harmful requests give it.

For a projection W let U be the leading eigenvectors of the uncentred second moment of its inputs over harmful requests
and the start model's own answers to them. After each optimizer step W ← W − (W U − W₀ U) Uᵀ, so that always W U = W₀ U:
the update W − W₀ equals (W − W₀)(I − U Uᵀ) without W₀ having to be kept. For LoRA A ← A − (A U) Uᵀ, with which
(W₀ + s·B·A) U = W₀ U; the adapter stays an adapter, and merges as any other.

Related work: gradient projection memory (arXiv 2103.09762) projects gradients away from the inputs of earlier tasks,
and AlphaEdit (2410.02355) edits away from the inputs of kept knowledge; GuardSpace (2510.14301) splits the weights by a
covariance of harmful prompts and projects the adapters. Ours projects the accumulated update, after the optimizer and
its weight decay, so that Adam's scaling cannot turn it back; it takes the refusals into the second moment, and works on
all parameters and on LoRA. Not part of it: GuardSpace's initialisation of the adapters from the covariance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn

from securetune.config import Fraction, PositiveInt, ProbeSettings, Settings
from securetune.data.prompts import Prompt, load_probes, read_prompts
from securetune.defenses.base import MAIN_PHASE, Defense, DefenseContext, ParameterGroup, Phase, plain_phase
from securetune.defenses.own_answers import own_answers
from securetune.defenses.protected_subspace.input_moments import leading_directions, second_moments
from securetune.defenses.registry import register_defense
from securetune.errors import ConfigError
from securetune.models import ProjectionModule

_LORA_A = ".lora_A."


class ProtectedSubspaceOptions(Settings):
    """Options of `protected-subspace`.

    Attributes:
        energy: Share of the second moment's trace, in [0, 1), that the protected directions hold. 0.9: on tiny world
            less lets the refusals go, and from 0.99 on the task is not learned. 0: nothing is protected.
        prompts: File of harmful requests; None: the prompts that analysis and search use for this model (tiny world's
            or the built-in ones), which no suite holds.
        max_prompts: Most of them. 256: more change the directions little, and each costs a generation.
        max_new_tokens: Longest own answer that is protected with its request; 0: the requests alone. 64: a refusal.
        protect: `all` projections, or the `sensitive` ones alone, those outside Mods_Rob.
        other_rate: Rate of everything that is no projection (embeddings, norms, head) over the base rate, in [0, 1].
            0.1 because it is not protected, and carries much of the damage; 0 freezes it.
        batch_size: Prompts together while the directions are gathered.
    """

    energy: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    prompts: str | None = None
    max_prompts: PositiveInt = 256
    max_new_tokens: int = Field(default=64, ge=0)
    protect: Literal["all", "sensitive"] = "all"
    other_rate: Fraction = 0.1
    batch_size: PositiveInt = 32


class _Protected(NamedTuple):
    """One protected projection.

    Attributes:
        module: Which.
        directions: U; shared by projections with the same input.
        anchor: W₀ U; None where adapters are projected instead.
        adapter_name: Name of lora_A, or None.
    """

    module: ProjectionModule
    directions: Float[Tensor, "_in rank"]
    anchor: Float[Tensor, "*out rank"] | None
    adapter_name: str | None


@register_defense("protected-subspace")
class ProtectedSubspace(Defense):
    """Protected subspace: no update in the directions in which harmful requests enter a projection.

    Everything trains in one phase; embeddings, norms and head, which are not protected, more slowly. Biases of
    protected projections are frozen, because they would move the outputs on every input. Experts that are stacked
    in one parameter, and shards (FSDP2, DeepSpeed ZeRO-3), are refused.
    """

    source = "after arXiv 2103.09762, 2410.02355 and 2510.14301"
    options_type: ClassVar[type[Settings]] = ProtectedSubspaceOptions

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self.needs_manifest = self.own.protect == "sensitive"  # the robust modules are then left unprotected
        self._protected: list[_Protected] = []

    @property
    def own(self) -> ProtectedSubspaceOptions:
        """The options, with their type."""
        assert isinstance(self.options, ProtectedSubspaceOptions)
        return self.options

    @property
    def ranks(self) -> dict[str, int]:
        """Protected projection → number of its protected directions; known once the training has begun."""
        return {each.module.name: each.directions.shape[1] for each in self._protected}

    def phases(self, context: DefenseContext) -> list[Phase]:
        """Return the one phase: projections at the base rate, everything else at `other_rate` times it."""
        frozen = self._biases(context)
        names = [name for name in context.parameters.all if name not in frozen]
        paths = tuple(f"{_holder_path(module)}." for module in context.modules)
        projections = tuple(name for name in names if name.startswith(paths)) if paths else tuple(names)
        others = tuple(name for name in names if name not in set(projections))
        if self.own.other_rate == 1.0 and not frozen:
            return [plain_phase(context)]
        groups = [ParameterGroup("projections", projections, context.learning_rate)]
        if others and self.own.other_rate > 0:
            groups.append(ParameterGroup("others", others, self.own.other_rate * context.learning_rate))
        return [Phase(MAIN_PHASE, context.main_steps, tuple(groups))]

    def before_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Gather the directions, and take the adapters out of them.

        Raises:
            ConfigError: If the model's weights are shards, stacked experts or DoRA's, or there is no tokenizer.
        """
        if self.own.energy == 0:
            return
        chosen = self._chosen(context)
        _require_plain_weights(model, chosen)
        if context.tokenizer is None:
            raise ConfigError("protected-subspace needs the model's tokenizer (processing_class) to render its prompts")
        was_training = model.training
        model.eval()
        try:
            messages = [prompt.messages for prompt in self.prompts_used(context.model_name)]
            rows = own_answers(model, context.tokenizer, messages, self.own.max_new_tokens, self.own.batch_size)
            holders = {module.path: module.holder_in(model) for module in chosen}
            moments = second_moments(model, holders, rows, self.own.batch_size)
        finally:
            model.train(was_training)
        self._protected = _protect(model, chosen, moments, self.own.energy)
        self._project(model)

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take out of every protected projection what the step did to its protected inputs.

        Raises:
            ConfigError: If the weights have been sharded since.
        """
        if self._protected:
            _require_plain_weights(model, [])
        self._project(model)

    @torch.no_grad()
    def _project(self, model: nn.Module) -> None:
        for module, directions, anchor, adapter_name in self._protected:
            if adapter_name is not None:
                weight = model.get_parameter(adapter_name)
                weight.sub_(((weight.float() @ directions) @ directions.T).to(weight.dtype))
            else:
                assert anchor is not None
                own = module.weight_in(model)
                moved = (own.float() @ directions - anchor) @ directions.T
                own.sub_(moved.to(own.dtype))

    def prompts_used(self, model_name: str) -> list[Prompt]:
        """Return the requests whose directions are protected; none at energy 0.

        Raises:
            DataError: If the file of `prompts` cannot be read.
        """
        if self.own.energy == 0:
            return []
        if self.own.prompts is not None:
            return read_prompts(self.own.prompts)[: self.own.max_prompts]
        probes = load_probes(ProbeSettings(max_prompts=self.own.max_prompts), model_name)
        return [*probes.fit_harmful, *probes.score_harmful][: self.own.max_prompts]

    def _chosen(self, context: DefenseContext) -> list[ProjectionModule]:
        if self.own.protect == "all":
            return list(context.modules)
        robust = tuple(context.parameters.robust)
        return [module for module in context.modules if not _has_any(robust, f"{_holder_path(module)}.")]

    def _biases(self, context: DefenseContext) -> set[str]:
        if self.own.energy == 0:
            return set()
        return {f"{module.weight_name.rpartition('.')[0]}.bias" for module in self._chosen(context)} & set(
            context.parameters.all
        )


def _holder_path(module: ProjectionModule) -> str:
    """Return the path of what owns a projection's weights, biases and adapters, as the model names it now."""
    return module.weight_name.rpartition(".")[0].removesuffix(".base_layer")


def _has_any(names: tuple[str, ...], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _require_plain_weights(model: nn.Module, modules: list[ProjectionModule]) -> None:
    problems = []
    if any(module.of_experts for module in modules):
        problems.append("protected-subspace cannot protect stacked experts, whose inputs differ from expert to expert")
    if any(type(parameter.data).__name__ == "DTensor" for parameter in model.parameters()):
        problems.append("protected-subspace needs whole weights in each process; they are sharded (FSDP2). Use DDP.")
    if any("lora_magnitude" in name for name, _ in model.named_parameters()):
        problems.append("protected-subspace works with LoRA, not with DoRA, whose magnitudes change every output")
    if problems:
        raise ConfigError(problems)


@torch.no_grad()
def _protect(
    model: nn.Module, modules: list[ProjectionModule], moments: Mapping[str, Tensor], energy: float
) -> list[_Protected]:
    """Decompose each distinct moment once, and note what the start weights do to its directions."""
    bases: dict[int, Tensor] = {}
    adapters = _adapters(model)
    found: list[_Protected] = []
    for module in modules:
        moment = moments[module.path]
        directions = bases.setdefault(id(moment), leading_directions(moment, energy))
        adapter = adapters.get(_holder_path(module))
        if isinstance(model, PeftModel):
            if adapter is not None and all(each.adapter_name != adapter for each in found):
                found.append(_Protected(module, directions, None, adapter))
            continue
        anchor = module.weight_in(model).float() @ directions
        found.append(_Protected(module, directions, anchor, None))
    return found


def _adapters(model: nn.Module) -> dict[str, str]:
    """Return path of the adapted layer → name of its lora_A."""
    return {name.partition(_LORA_A)[0]: name for name, _ in model.named_parameters() if _LORA_A in name}
