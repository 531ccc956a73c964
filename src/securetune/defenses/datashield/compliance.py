"""The direction of compliance, and how well each layer has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class AnswerStates(NamedTuple):
    """States of answered requests at some layers.

    Attributes:
        answers: Mean over each answer's tokens.
        before: At the last token of each request.
    """

    answers: Float[Tensor, "*layer answer hidden"]
    before: Float[Tensor, "*layer answer hidden"]

    @property
    def shifts(self) -> Float[Tensor, "*layer answer hidden"]:
        """How far each answer goes from where its request stood: what rows are scored by."""
        return self.answers - self.before

    def at(self, layer: int) -> AnswerStates:
        """Return the states of one layer, by its place."""
        return AnswerStates(self.answers[layer], self.before[layer])

    def half(self, which: int) -> AnswerStates:
        """Return every other answer, from the first or the second on."""
        return AnswerStates(self.answers[..., which::2, :], self.before[..., which::2, :])


class LayerQuality(NamedTuple):
    """How well a layer has the direction, on answers that it was not made of.

    Attributes:
        explained_share: The paper's score vᵀS_b v / vᵀS_t v of the answers, in [0, 1].
        separation: (d / 2)² / Var, with d the distance between compliance and refusal along the direction, and Var the
            variance of the shifts along it. Where both kinds answer the same requests, it is the explained share of the
            shifts. It decides.
    """

    explained_share: float
    separation: float


class ComplianceDirection(NamedTuple):
    """The direction that is projected on.

    Attributes:
        layer: The layer, from 1.
        vector: Of length 1; it points from refusal to compliance.
        layers: Layer → how well it has the direction.
    """

    layer: int
    vector: Float[Tensor, " hidden"]
    layers: dict[int, LayerQuality]


def mean_difference(
    accepted: Float[Tensor, "*layer answer hidden"], refused: Float[Tensor, "*layer refusal hidden"]
) -> Float[Tensor, "*layer hidden"]:
    """Return the direction from the refusals' mean to that of the answers, of length 1 (0 where there is none)."""
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


def separation(direction: Float[Tensor, " hidden"], accepted: AnswerStates, refused: AnswerStates) -> float:
    """Return how far compliance lies from refusal, against how far the shifts spread (`LayerQuality.separation`)."""
    distance = ((accepted.answers.mean(dim=0) - refused.answers.mean(dim=0)) @ direction).item()
    spread = (torch.cat([accepted.shifts, refused.shifts]) @ direction).var(correction=0).item()
    return (distance / 2) ** 2 / spread if spread > 0 else 0.0


def layer_quality(accepted: AnswerStates, refused: AnswerStates) -> LayerQuality:
    """Judge a layer: each half of the answers gives the direction for the other half, then the mean of both."""
    found = list(_halves(accepted, refused))
    return LayerQuality(*(sum(values) / len(found) for values in zip(*found, strict=True)))


def _halves(accepted: AnswerStates, refused: AnswerStates) -> Iterator[LayerQuality]:
    for here, there in ((0, 1), (1, 0)):
        direction = mean_difference(accepted.half(here).answers, refused.half(here).answers)
        others = accepted.half(there), refused.half(there)
        share = explained_share(direction, others[0].answers, others[1].answers)
        yield LayerQuality(share, separation(direction, *others))


def find_direction(
    accepted: AnswerStates, refused: AnswerStates, layers: list[int], chosen: int | None = None
) -> ComplianceDirection:
    """Return the direction at the chosen layer, or else at the one with the largest separation.

    Args:
        accepted: Answers that comply.
        refused: Refusals.
        layers: Which layers these are, from 1.
        chosen: One of them, or None.
    """
    found = {layer: layer_quality(accepted.at(place), refused.at(place)) for place, layer in enumerate(layers)}
    best = max(found, key=lambda layer: found[layer].separation) if chosen is None else chosen
    place = layers.index(best)
    return ComplianceDirection(best, mean_difference(accepted.at(place).answers, refused.at(place).answers), found)
