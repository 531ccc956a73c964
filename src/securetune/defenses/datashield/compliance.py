"""The direction of compliance, and how well each layer has it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class ComplianceDirection(NamedTuple):
    """The direction that is projected on.

    Attributes:
        layer: The layer, from 1.
        vector: Of length 1; it points from refusal to compliance.
        explained: Layer → share of the variance along its direction that lies between compliance and refusal.
    """

    layer: int
    vector: Float[Tensor, " hidden"]
    explained: dict[int, float]


def mean_difference(
    accepted: Float[Tensor, "*layer answer hidden"], refused: Float[Tensor, "*layer refusal hidden"]
) -> Float[Tensor, "*layer hidden"]:
    """Return the direction from the mean of the one to the mean of the other, of length 1 (0 where there is none)."""
    return torch.nn.functional.normalize(accepted.mean(dim=-2) - refused.mean(dim=-2), dim=-1)


def explained_share(
    direction: Float[Tensor, " hidden"],
    accepted: Float[Tensor, "answer hidden"],
    refused: Float[Tensor, "refusal hidden"],
) -> float:
    """Return vᵀS_b v / vᵀS_t v: which share of the variance along a direction lies between the two kinds of answers.

    With F the Fisher ratio vᵀS_b v / vᵀS_w v it is F / (1 + F), so the same layer is best by both; it lies in [0, 1].
    """
    here, there = accepted @ direction, refused @ direction
    both = torch.cat([here, there])
    total = ((both - both.mean()) ** 2).sum()
    between = len(here) * (here.mean() - both.mean()) ** 2 + len(there) * (there.mean() - both.mean()) ** 2
    return float(between / total) if total > 0 else 0.0


def cross_fitted_share(accepted: Float[Tensor, "pair hidden"], refused: Float[Tensor, "pair hidden"]) -> float:
    """Return the share on pairs that the direction was not made of: each half gives it for the other, then the mean."""
    found = []
    for here, there in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        direction = mean_difference(accepted[here], refused[here])
        found.append(explained_share(direction, accepted[there], refused[there]))
    return sum(found) / len(found)


def find_direction(
    accepted: Float[Tensor, "layer pair hidden"],
    refused: Float[Tensor, "layer pair hidden"],
    layers: list[int],
    chosen: int | None = None,
) -> ComplianceDirection:
    """Return the direction at the chosen layer, or else at the one that tells the answers apart best.

    Args:
        accepted: Mean states of answers that comply.
        refused: Of refusals of the same requests.
        layers: Which layers these are, from 1.
        chosen: One of them, or None.
    """
    explained = {layer: cross_fitted_share(accepted[place], refused[place]) for place, layer in enumerate(layers)}
    best = max(explained, key=lambda layer: explained[layer]) if chosen is None else chosen
    place = layers.index(best)
    return ComplianceDirection(best, mean_difference(accepted[place], refused[place]), explained)
