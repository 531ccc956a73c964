"""Where the safety layers of a model are (arXiv 2408.17003, 3.2 to 3.4, A.3.4).

First, the mean gap in angle between last-token states of a harmless and a harmful request, over that of two harmless
ones, layer by layer: where it begins to widen and until it levels off, there is the initial range. Then its two ends
are moved, one after the other, to where scaling all weights of the range's layers by a factor above 1 makes the model
refuse most harmless requests (the over-rejection that safety layers cause); if it refuses most of them anyway, by a
factor below 1, to where it refuses fewest.

The paper reads the initial range off a figure. Ours is the gap's rise: from the first layer with a tenth of its largest
value to the first with nine tenths. The paper counts refusals in the first 4 to 8 tokens
of an answer among 721 requests with dangerous verbs; ours by the first token, as more likely a refusal's than an
answer's, among the harmless twins of harmful requests, and of ranges with the same count the one with the higher mean
log-odds wins. As in the paper's appendix the factor moves away from 1 in steps of 0.05 until the counts of one end's
ranges differ enough: a standard deviation of 2 % of the requests, which are its 15 of 721. Ends move by at most four
layers. Ours too: where no factor makes the model refuse harmless requests, the refusals of harmful ones are counted
under factors below 1 (the paper's first indicator, which it gives up because it hardly moves), and where these do not
differ either, the initial range stays.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from securetune.data.prompts import ProbeSet, Prompt
from securetune.errors import RunError
from securetune.features.hidden_states import TokenBatch, final_states, last_token_states, make_batches
from securetune.features.readout import RefusalMargin, find_openings, refusal_margin
from securetune.models import ChatModel
from securetune.models.layer_weights import layer_of

_PAIRS = 500
_RISE = (0.1, 0.9)
_STEP, _STEPS = 0.05, 10
_ENOUGH_SPREAD = 15 / 721
_REACH = 4
_MANY = 0.5


class LayerRange(NamedTuple):
    """Neighbouring layers.

    Attributes:
        first: Index from 0.
        last: Index, included.
    """

    first: int
    last: int


class Refusals(NamedTuple):
    """How a model that may be scaled takes the harmless requests.

    Attributes:
        number: How many it would rather refuse than answer.
        margin: Mean log-odds of a refusal against an answer.
    """

    number: int
    margin: float


class SafetyLayers(NamedTuple):
    """What was found, and on what grounds.

    Attributes:
        layers: The safety layers.
        evidence: As numbers and lists, for a file.
    """

    layers: LayerRange
    evidence: dict[str, Any]


def locate_safety_layers(chat: ChatModel, probes: ProbeSet, batch_size: int, seed: int) -> SafetyLayers:
    """Find the safety layers.

    Args:
        chat: An aligned model; adapters in it must not have learned anything yet. Its weights are changed meanwhile.
        probes: The fitting prompts give the angles; the refusals of the scoring ones are counted.
        batch_size: Prompts a pass.
        seed: Of the pairs.

    Raises:
        RunError: If the model shows no gap, or does not refuse harmful requests by its first word.
    """
    gap = angle_gaps(chat, probes.fit_harmful, probes.fit_harmless, batch_size, seed)
    initial = initial_range(gap)
    openings = find_openings(chat, probes.fit_harmful, probes.fit_harmless, batch_size)
    if not openings.usable:
        raise RunError(
            "sppft: the model does not begin refusals otherwise than answers, so its safety layers cannot be located. "
            "Name them: method_options.layers."
        )
    tries = _tries(chat, probes, batch_size, refusal_margin(chat, openings))
    evidence: dict[str, Any] = {
        "angle_gap_degrees": [round(value, 4) for value in gap],
        "initial_range": list(initial),
        "refused_unscaled": {each.requests: [each.unscaled.number, each.count] for each in tries},
    }
    for each in tries:
        if (refined := _refined(each, initial, len(gap))) is not None:
            return SafetyLayers(refined.layers, {**evidence, **refined.evidence, "layers": list(refined.layers)})
    return SafetyLayers(initial, {**evidence, "layers": list(initial)})


def angle_gaps(
    chat: ChatModel, harmful: Sequence[Prompt], harmless: Sequence[Prompt], batch_size: int, seed: int
) -> list[float]:
    """Return for each layer the mean angle between a harmless and a harmful prompt, less that of two harmless ones.

    Args:
        chat: The model.
        harmful: At least one.
        harmless: At least two.
        batch_size: Prompts a pass.
        seed: Of the 500 pairs.

    Returns:
        Degrees, by layer.
    """
    rng = random.Random(f"safety layers {seed}")
    of_harmful = _directions(last_token_states(chat.model, chat.tokenizer, harmful, batch_size, "all"))
    of_harmless = _directions(last_token_states(chat.model, chat.tokenizer, harmless, batch_size, "all"))
    picked = [(*rng.sample(range(len(harmless)), 2), rng.randrange(len(harmful))) for _ in range(_PAIRS)]
    one, two, bad = (torch.tensor(indices) for indices in zip(*picked, strict=True))
    across = _degrees(of_harmless[:, one], of_harmful[:, bad])
    within = _degrees(of_harmless[:, one], of_harmless[:, two])
    return [float(value) for value in (across - within).mean(dim=1)]


def _directions(states: Float[Tensor, "layer prompt hidden"]) -> Float[Tensor, "layer prompt hidden"]:
    return nn.functional.normalize(states.cpu().double(), dim=-1)


def _degrees(one: Float[Tensor, "layer pair hidden"], two: Float[Tensor, "layer pair hidden"]) -> Tensor:
    return torch.rad2deg(torch.arccos((one * two).sum(dim=-1).clamp(-1.0, 1.0)))


def initial_range(gap: Sequence[float]) -> LayerRange:
    """Return the layers over which the gap rises.

    Example:
        >>> initial_range([0.1, 0.3, 4.0, 9.0, 12.0, 12.5])
        LayerRange(first=2, last=4)

    Raises:
        RunError: If there is none.
    """
    largest = max(gap)
    if largest <= 0:
        raise RunError(
            "sppft: no layer of the model tells harmful from harmless requests, so it has no safety layers. "
            "Name them: method_options.layers."
        )
    first, last = (next(layer for layer, value in enumerate(gap) if value >= share * largest) for share in _RISE)
    return LayerRange(first, last)


class _Try:
    """Counts the refusals of some requests while layers are scaled.

    Attributes:
        requests: `harmless` or `harmful`.
        count: How many they are.
        sign: 1: layers are scaled up, and the range with most refusals is looked for; -1: down, and that with fewest.
        unscaled: The refusals of the model as it is.
    """

    def __init__(
        self, model: Any, batches: Sequence[TokenBatch], readout: RefusalMargin, requests: str, sign: int | None = None
    ) -> None:
        self._model, self._batches, self._readout, self.requests = model, batches, readout, requests
        self.count = sum(len(batch.last) for batch in batches)
        self.unscaled = self._refusals()
        self.sign = sign or (-1 if self.unscaled.number >= _MANY * self.count else 1)

    def scaled(self, layers: LayerRange, scale: float) -> Refusals:
        """Count with layers scaled."""
        with scaled_layers(self._model, layers, scale):
            return self._refusals()

    def best(self, found: dict[int, Refusals]) -> int:
        """Return the end whose range matters most."""
        return max(found, key=lambda end: (self.sign * found[end].number, self.sign * found[end].margin))

    def _refusals(self) -> Refusals:
        margins = self._readout.logits(final_states(self._model, self._batches))
        return Refusals(int((margins > 0).sum()), round(float(margins.mean()), 4))


def _tries(chat: ChatModel, probes: ProbeSet, batch_size: int, readout: RefusalMargin) -> list[_Try]:
    harmless, harmful = (
        make_batches(chat.tokenizer, prompts, batch_size, chat.model.device)
        for prompts in (probes.score_harmless, probes.score_harmful)
    )
    return [
        _Try(chat.model, harmless, readout, "harmless"),
        _Try(chat.model, harmful, readout, "harmful", sign=-1),
    ]


def _refined(counts: _Try, initial: LayerRange, layer_count: int) -> SafetyLayers | None:
    """Choose the factor by the ranges with another last layer, then the last layer, then the first.

    Returns:
        None if the counts do not differ.
    """
    first, last = initial
    ends = range(max(first, last - _REACH), min(layer_count, last + _REACH + 1))
    enough = _enough_scale(counts, first, ends)
    if enough is None:
        return None
    scale, by_last = enough
    last = counts.best(by_last)
    starts = range(max(0, first - _REACH), min(last, first + _REACH) + 1)
    by_first = {start: counts.scaled(LayerRange(start, last), scale) for start in starts}
    evidence = {
        "counted": counts.requests,
        "scale": scale,
        "refused_by_last_layer": {f"{first}-{end}": list(value) for end, value in by_last.items()},
        "refused_by_first_layer": {f"{start}-{last}": list(value) for start, value in by_first.items()},
    }
    return SafetyLayers(LayerRange(counts.best(by_first), last), evidence)


def _enough_scale(counts: _Try, first: int, ends: Sequence[int]) -> tuple[float, dict[int, Refusals]] | None:
    """Return the factor nearest to 1 by which the ranges differ enough."""
    for number in range(1, _STEPS + 1):
        scale = round(1 + counts.sign * _STEP * number, 2)
        found = {end: counts.scaled(LayerRange(first, end), scale) for end in ends}
        refused = torch.tensor([value.number for value in found.values()], dtype=torch.double)
        if float(refused.std(correction=0)) >= _ENOUGH_SPREAD * counts.count:
            return scale, found
    return None


@contextmanager
def scaled_layers(model: nn.Module, layers: LayerRange, scale: float) -> Iterator[None]:
    """Multiply all weights of some layers, adapters apart, and put the very same ones back afterwards."""
    chosen = [
        weight
        for name, weight in model.named_parameters()
        if ".lora_" not in name and _within(layers, layer_of(name)) and weight.is_floating_point()
    ]
    kept = [weight.detach().clone() for weight in chosen]
    with torch.no_grad():
        for weight in chosen:
            weight.mul_(scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(chosen, kept, strict=True):
                weight.copy_(before)


def _within(layers: LayerRange, layer: int | None) -> bool:
    return layer is not None and layers.first <= layer <= layers.last
