"""The sampled sweep: perturb one module after another, and see what unchanged readouts make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from securetune.data.prompts import Prompt
from securetune.features.classifier import SafetyClassifier
from securetune.features.hidden_states import make_batches
from securetune.features.perturbation import GaussianPerturbation, Perturbation
from securetune.features.readout import Readout
from securetune.features.replay import StateSource, open_replay
from securetune.models import ChatModel, ProjectionModule, map_modules
from securetune.progress import ProgressCallback, silent


class SweepLogits(NamedTuple):
    """One readout's values.

    Attributes:
        intact: Of the unperturbed model.
        perturbed: Of the model with one module perturbed.
    """

    intact: Float[Tensor, " prompt"]
    perturbed: Float[Tensor, "size module seed prompt"]

    def shifts(self) -> Float[Tensor, "size module seed prompt"]:
        """Return how far each value moved."""
        return self.perturbed - self.intact

    def hits(self) -> Float[Tensor, "size module seed prompt"]:
        """Return 1 where the value is still positive (taken for harmful; to be refused), else 0."""
        return (self.perturbed > 0).double()


class LayerDrift(NamedTuple):
    """What perturbing a module does to the states of the layers above it; NaN below, where nothing changes.

    Attributes:
        cosine: Cosine between the perturbed and the intact state at the last prompt token, mean over prompts and seeds.
        accuracy: Share of the prompts that the layer's own classifier still takes for harmful.
    """

    cosine: Float[Tensor, "module layer"]
    accuracy: Float[Tensor, "module layer"]


class SweepResult(NamedTuple):
    """What one sweep found.

    Attributes:
        readouts: Name of the readout → its values.
        drift: At the last of the sizes, or None if no layer classifiers were given.
    """

    readouts: dict[str, SweepLogits]
    drift: LayerDrift | None


def sweep_modules(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    readouts: Sequence[Readout],
    sizes: Sequence[float],
    seeds: Sequence[int],
    batch_size: int = 64,
    progress: ProgressCallback | None = None,
    what: str = "perturbing modules",
    perturbation: Perturbation | None = None,
    layer_classifiers: Sequence[SafetyClassifier] = (),
    modules: Sequence[ProjectionModule] | None = None,
) -> SweepResult:
    """Perturb every module alone, at every size and with every seed.

    The model is the same afterwards, bit for bit.

    Args:
        chat: The model.
        prompts: Harmful requests.
        readouts: Made for the intact model; never refitted here.
        sizes: Sizes of the perturbation.
        seeds: Its seeds; a perturbation may have a number of draws of its own.
        batch_size: Prompts a forward pass.
        progress: Told after each module.
        what: What to call this in `progress`.
        perturbation: None: Gaussian noise.
        layer_classifiers: One a layer, to follow the drift through the layers at the last size.
        modules: What to perturb; results come in this order. None: all projections, in the order of `map_modules`.
    """
    kind = perturbation or GaussianPerturbation()
    draws = kind.draws(seeds)
    modules = map_modules(chat.model) if modules is None else modules
    source = open_replay(chat.model, make_batches(chat.tokenizer, prompts, batch_size, chat.model.device))
    drift = _DriftMeter(source, layer_classifiers, len(modules)) if layer_classifiers else None
    intact = torch.stack([readout.logits(source.final_states()).double().cpu() for readout in readouts])
    result = torch.empty(len(readouts), len(sizes), len(modules), len(draws), len(prompts), dtype=torch.float64)
    report = progress or silent
    for done, index in enumerate(_by_layer(modules), start=1):
        source.advance_to(modules[index].layer)
        for place, size in enumerate(sizes):
            for draw, seed in enumerate(draws):
                with kind.applied(chat.model, [modules[index]], size, seed):
                    follow = drift is not None and place == len(sizes) - 1
                    states = source.layer_states() if follow else source.final_states().unsqueeze(0)
                if drift is not None and follow:
                    drift.add(index, modules[index].layer, states)
                for row, readout in enumerate(readouts):
                    result[row, place, index, draw] = readout.logits(states[-1]).cpu()
        report(what, done, len(modules))
    named = {readout.name: SweepLogits(intact[row], result[row]) for row, readout in enumerate(readouts)}
    return SweepResult(named, drift.mean() if drift else None)


class _DriftMeter:
    """Sums the drift of each module's perturbation over its draws."""

    def __init__(self, source: StateSource, classifiers: Sequence[SafetyClassifier], module_count: int) -> None:
        self._intact = source.layer_states().float()
        self._classifiers = classifiers
        self._cosine = torch.full((module_count, len(classifiers)), torch.nan, dtype=torch.float64)
        self._accuracy = self._cosine.clone()
        self._draws = torch.zeros(module_count, 1)

    def add(self, module: int, first: int, states: Float[Tensor, "layer prompt hidden"]) -> None:
        """Add one draw; `first` is the module's layer and `states` those of the topmost layers, down to it or below."""
        states = states[first - len(self._classifiers) :]
        cosine = torch.nn.functional.cosine_similarity(states.float(), self._intact[first:], dim=-1).mean(dim=1)
        hits = [
            classifier.predict(layer).double().mean()
            for classifier, layer in zip(self._classifiers[first:], states, strict=True)
        ]
        self._cosine[module, first:] = self._cosine[module, first:].nan_to_num() + cosine.double().cpu()
        self._accuracy[module, first:] = self._accuracy[module, first:].nan_to_num() + torch.stack(hits).cpu()
        self._draws[module] += 1

    def mean(self) -> LayerDrift:
        """Return the means over draws."""
        return LayerDrift(self._cosine / self._draws, self._accuracy / self._draws)


def _by_layer(modules: Sequence[ProjectionModule]) -> list[int]:
    """Return the modules' indices in the order of their layers, as the replay needs them."""
    return sorted(range(len(modules)), key=lambda index: modules[index].layer)
