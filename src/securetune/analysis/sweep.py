"""The sampled sweep: perturb one module after another, and see what unchanged readouts make of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from securetune.analysis.module_pass import Execution, measure_modules
from securetune.analysis.partial_results import Values, key_of
from securetune.data.prompts import Prompt
from securetune.features.classifier import SafetyClassifier
from securetune.features.hidden_states import make_batches
from securetune.features.perturbation import GaussianPerturbation, Perturbation
from securetune.features.readout import Readout
from securetune.features.replay import LayerReplay, StateSource, open_replay
from securetune.models import ChatModel, ProjectionModule, map_modules


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
        cosine: Cosine between the perturbed and the intact state at the last prompt token.
        hits: 1 where the layer's own classifier still takes the prompt for harmful, else 0.
    """

    cosine: Float[Tensor, "module layer seed prompt"]
    hits: Float[Tensor, "module layer seed prompt"]


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
    what: str = "perturbing modules",
    perturbation: Perturbation | None = None,
    layer_classifiers: Sequence[SafetyClassifier] = (),
    modules: Sequence[ProjectionModule] | None = None,
    execution: Execution | None = None,
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
        what: What to call this in the progress.
        perturbation: None: Gaussian noise.
        layer_classifiers: One a layer, to follow the drift through the layers at the last size.
        modules: What to perturb; results come in this order. None: all projections, in the order of `map_modules`.
        execution: Progress, and where finished modules are kept; None: silent, and nowhere.
    """
    kind = perturbation or GaussianPerturbation()
    every_module = map_modules(chat.model)
    modules = every_module if modules is None else modules
    batches = make_batches(chat.tokenizer, prompts, batch_size, chat.model.device)
    variants = [(size, seed) for size in sizes for seed in kind.draws(seeds)]
    sweep = _Sweep(chat, open_replay(chat.model, batches), kind, variants, sizes[-1], readouts, layer_classifiers)
    key = key_of(
        model=chat.identity.weights_fingerprint,
        dtype=str(chat.model.dtype),
        device=chat.model.device.type,
        batches=batches,
        perturbation=kind,
        variants=variants,
        readouts=readouts,
        layer_classifiers=layer_classifiers,
        intact=sweep.intact,
        stacked_tokens=LayerReplay.stacked_tokens,
    )
    layers = max(module.layer for module in every_module) + 1
    found = measure_modules(modules, layers, sweep.source, sweep.measure, what, key, execution or Execution())
    shape = (len(modules), len(readouts), len(sizes), len(variants) // len(sizes), len(prompts))
    # From what is kept of a module to what is kept of a readout; contiguous, because sums depend on the layout.
    values = found["values"].reshape(shape).permute(1, 2, 0, 3, 4).contiguous()
    return SweepResult(
        {readout.name: SweepLogits(sweep.intact[row], values[row]) for row, readout in enumerate(readouts)},
        LayerDrift(found["cosine"], found["hits"]) if layer_classifiers else None,
    )


class _Sweep:
    """What stays the same while module after module is perturbed.

    Args:
        chat: The model.
        source: Gives its states.
        kind: The perturbation.
        variants: Sizes and seeds of it.
        followed: The size at which the drift is followed.
        readouts: What is read off.
        classifiers: One a layer, or none for no drift.
    """

    def __init__(
        self,
        chat: ChatModel,
        source: StateSource,
        kind: Perturbation,
        variants: Sequence[tuple[float, int]],
        followed: float,
        readouts: Sequence[Readout],
        classifiers: Sequence[SafetyClassifier],
    ) -> None:
        self.source = source
        self._model, self._kind, self._variants, self._followed = chat.model, kind, variants, followed
        self._readouts, self._classifiers = readouts, classifiers
        self.intact = torch.stack([readout.logits(source.final_states()).double().cpu() for readout in readouts])
        self._intact_layers = source.layer_states().float() if classifiers else None

    def measure(self, module: ProjectionModule) -> Values:
        """Return all readouts' `values`, and the drift as `cosine` and `hits` of each layer if it is followed."""
        values = torch.empty(len(self._readouts), len(self._variants), self.intact.shape[1], dtype=torch.float64)
        drifts = []
        applied = [partial(self._kind.applied, self._model, [module], size, seed) for size, seed in self._variants]
        found = self.source.states_of_variants(applied, keep_layers=self._intact_layers is not None)
        for place, states in enumerate(found):
            if self._intact_layers is not None and self._variants[place][0] == self._followed:
                drifts.append(self._drift(module.layer, states))
            for row, readout in enumerate(self._readouts):
                values[row, place] = readout.logits(states[-1]).cpu()
        if not drifts:
            return {"values": values}
        cosine, hits = torch.stack(drifts, dim=2)
        return {"values": values, "cosine": cosine, "hits": hits}

    def _drift(self, first: int, states: Float[Tensor, "layer prompt hidden"]) -> Float[Tensor, "2 every_layer prompt"]:
        """Return one variant's cosines and hits, NaN below the perturbed layer `first`.

        `states` are those of the topmost layers, down to `first` or below.
        """
        assert self._intact_layers is not None
        states = states[first - len(self._classifiers) :]
        drift = torch.full((2, len(self._classifiers), states.shape[1]), torch.nan)
        drift[0, first:] = torch.nn.functional.cosine_similarity(states.float(), self._intact_layers[first:], dim=-1)
        drift[1, first:] = torch.stack(
            [
                classifier.predict(layer).float()
                for classifier, layer in zip(self._classifiers[first:], states, strict=True)
            ]
        )
        return drift
