"""GuardSpace (arXiv 2510.14301): adapters made of what matters least to harmful requests, without effect on them.

For a projection W let C = X·Xᵀ over its inputs from harmful requests, and W·C = U·S·Vᵀ. The last components, as many as
the adapter's rank, matter least for safety. The adapter begins as B₀ = U_r·√S_r, A₀ = √S_r·V_rᵀ·C⁻¹, and the rest of W
is frozen. The eigenvectors of C whose eigenvalues are (nearly) zero span the null space, with P its projector; the
layer computes (W - B₀·A₀·P)·x + B·A·P·x, so that no update changes the outputs on these inputs.

Fidelity: of the paper the abstract and descriptions were at hand, and its authors' code, which this follows: the
damping of C by a hundredth of its mean variance, the last components, the even division of S over both factors, and the
bound of 1e-6 of the largest eigenvalue. Ours:

- One set of requests for both parts; their code takes AdvBench for C, and real-toxicity-prompts for the null space.
- Requests with the model's own answers, rendered with its chat template; theirs are bare requests. `max_new_tokens: 0`
  leaves the answers out.
- The scale of C, which decides how large B₀ is beside A₀: theirs divides each request's inputs by their largest value;
  here C is divided by its mean variance.
- The adapter has a scale s (alpha/rank), theirs has none: s·B₀·A₀ is what theirs is at the start.
- P is no factor of its own: A stays in its range. See `confined_adapters`, which also says why that is the same
  training, and `adapted_weights` for how the frozen part is kept, and the adapter saved.
- A fused weight is one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from securetune.config import Settings
from securetune.data.prompts import Prompt
from securetune.defenses.adapted_weights import AdaptedWeight, Start
from securetune.defenses.base import DefenseContext
from securetune.defenses.confined_adapters import ConfinedAdapters, Confinement
from securetune.defenses.harmful_requests import request_moments
from securetune.defenses.registry import register_defense
from securetune.defenses.request_options import RequestOptions
from securetune.errors import ConfigError

_DAMPING = 0.01
"""Of C's mean variance, added to its diagonal before it is inverted: the authors'."""


class GuardSpaceOptions(RequestOptions):
    """Options of `guardspace`.

    Attributes:
        null_tolerance: Largest eigenvalue of the null space over C's largest, in [0, 1]. 1e-6, as in the authors' code,
            is for layers thousands wide. Narrow ones have no such direction and do not train then: tiny world, 128
            wide, wants 1e-3. 1: every direction is free.
        initialize: Whether adapters begin with the least relevant components. With False and a `null_tolerance` of 1
            it is plain LoRA.
    """

    null_tolerance: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-6
    initialize: bool = True


@register_defense("guardspace")
class GuardedAdapters(ConfinedAdapters):
    """GuardSpace: adapters made of what matters least to harmful requests, and without effect on them.

    The saved adapter has twice the rank that trained. It decomposes each adapted weight once before training (SVD in
    float64). DoRA, quantized models, stacked experts, sharded weights (FSDP2, DeepSpeed ZeRO) and full tuning are
    refused; without adapters, what is left of the method is `protected-subspace`.
    """

    source = "arXiv 2510.14301"
    options_type: ClassVar[type[Settings]] = GuardSpaceOptions
    side = "inputs"

    @property
    def own(self) -> GuardSpaceOptions:
        """The options, with their type."""
        assert isinstance(self.options, GuardSpaceOptions)
        return self.options

    @property
    def acts(self) -> bool:
        """Whether adapters begin elsewhere, or are confined."""
        return self.own.initialize or self.own.null_tolerance < 1

    def prompts_used(self, model_name: str) -> list[Prompt]:
        """Return the requests."""
        return self.own.requests(model_name) if self.acts else []

    def confine(
        self, model: nn.Module, weights: Sequence[AdaptedWeight], context: DefenseContext
    ) -> dict[str, Confinement]:
        """Decompose each weight, and each distinct C once.

        Raises:
            ConfigError: If a weight has fewer components than its adapter, or no direction is free anywhere.
        """
        if self.own.initialize:
            _require_components(model, weights)
        holders = {each.path: each.module.holder_in(model) for each in weights}
        moments = request_moments(model, holders, self.own, context, self.name)
        bases: dict[int, Tensor] = {}
        found = {}
        for each in weights:
            moment = moments[each.path]
            if id(moment) not in bases:
                bases[id(moment)] = used_directions(moment, self.own.null_tolerance)
            start = None
            if self.own.initialize:
                start = least_relevant_part(each.values_in(model), moment, each.rank, each.scale)
            found[each.path] = Confinement(bases[id(moment)], start)
        if not any(each.directions.shape[1] < each.directions.shape[0] for each in found.values()):
            raise ConfigError(
                f"method_options.null_tolerance {self.own.null_tolerance:g} leaves no direction free in any adapted "
                "projection: harmful requests use all of them. Raise it (tiny world: 1e-3)."
            )
        return found

    def notes(self) -> list[str]:
        """Say also how many adapters cannot learn."""
        stuck = [path for path, each in self.directions.items() if each.shape[0] == each.shape[1]]
        if not stuck:
            return super().notes()
        return [
            *super().notes(),
            f"guardspace: {len(stuck)} of {len(self.directions)} adapters have no free direction at null_tolerance "
            f"{self.own.null_tolerance:g} and learn nothing, such as {stuck[0]}.",
        ]

    def evidence(self) -> dict[str, Any]:
        """Return how many of each projection's input directions are free."""
        free = {path: each.shape[0] - each.shape[1] for path, each in self.directions.items()}
        return {"free_directions": free} if free else {}


def used_directions(moment: Float[Tensor, "_in _in"], tolerance: float) -> Float[Tensor, "_in used"]:
    """Return the eigenvectors that are not in the null space: those with more than a share of the largest eigenvalue.

    Example:
        >>> used_directions(torch.diag(torch.tensor([1.0, 8.0, 0.0])), 0.5).abs().T.float()
        tensor([[0., 1., 0.]])
    """
    values, vectors = torch.linalg.eigh(moment.double())
    return vectors[:, values > tolerance * values[-1].clamp_min(0)]


def least_relevant_part(
    weight: Float[Tensor, "out in"], moment: Float[Tensor, "_in _in"], rank: int, scale: float
) -> Start:
    """Return the last components of W·C as an adapter, so that scale·up·down is their part of W.

    Args:
        weight: W.
        moment: C, up to a factor; zero counts as the identity.
        rank: How many components.
        scale: What the adapter's B·A is multiplied by.
    """
    identity = torch.eye(moment.shape[0], dtype=torch.float64, device=moment.device)
    variance = moment.double().diagonal().mean()
    covariance = identity if variance == 0 else moment.double() / variance + _DAMPING * identity
    left, sizes, right = torch.linalg.svd(weight.double() @ covariance, full_matrices=False)
    shares = (sizes[-rank:] / scale).sqrt()
    down = torch.linalg.solve(covariance, right[-rank:].mT).mT
    return Start(left[:, -rank:] * shares, shares[:, None] * down)


def _require_components(model: nn.Module, weights: Sequence[AdaptedWeight]) -> None:
    for each in weights:
        components = min(each.size_in(model))
        if each.rank > components:
            raise ConfigError(f"lora.rank must be at most {components}, the components of {each.path}; got {each.rank}")
