"""The sampled sweep: perturb one module after another, and see what the unchanged classifier makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from securetune.data.prompts import Prompt
from securetune.features.classifier import SafetyClassifier
from securetune.features.hidden_states import make_batches
from securetune.features.perturbation import perturbed
from securetune.features.replay import open_replay
from securetune.models import ChatModel, ProjectionModule, map_modules
from securetune.progress import ProgressCallback, silent


class SweepLogits(NamedTuple):
    """The classifier's logits, positive for "harmful".

    Attributes:
        intact: Of the unperturbed model.
        perturbed: Of the model with one module perturbed.
    """

    intact: Float[Tensor, " prompt"]
    perturbed: Float[Tensor, "epsilon module seed prompt"]

    def shifts(self) -> Float[Tensor, "epsilon module seed prompt"]:
        """Return how far each logit moved."""
        return self.perturbed - self.intact

    def hits(self) -> Float[Tensor, "epsilon module seed prompt"]:
        """Return 1 where the request is still taken for harmful, else 0."""
        return (self.perturbed > 0).double()


def sweep_modules(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    classifier: SafetyClassifier,
    epsilons: Sequence[float],
    seeds: Sequence[int],
    batch_size: int = 64,
    progress: ProgressCallback | None = None,
    what: str = "perturbing modules",
) -> SweepLogits:
    """Perturb every module alone, at every size and with every seed.

    The model is the same afterwards, bit for bit.

    Args:
        chat: The model.
        prompts: Harmful requests.
        classifier: Fitted on the intact model; never refitted here.
        epsilons: Relative noise sizes.
        seeds: Noise seeds.
        batch_size: Prompts a forward pass.
        progress: Told after each module.
        what: What to call this in `progress`.
    """
    modules = map_modules(chat.model)
    source = open_replay(chat.model, make_batches(chat.tokenizer, prompts, batch_size, chat.model.device))
    intact = classifier.logits(source.final_states()).cpu()
    result = torch.empty(len(epsilons), len(modules), len(seeds), len(prompts), dtype=intact.dtype)
    report = progress or silent
    for done, index in enumerate(_by_layer(modules), start=1):
        source.advance_to(modules[index].layer)
        for place, epsilon in enumerate(epsilons):
            for draw, seed in enumerate(seeds):
                with perturbed(chat.model, [modules[index]], epsilon, seed):
                    result[place, index, draw] = classifier.logits(source.final_states()).cpu()
        report(what, done, len(modules))
    return SweepLogits(intact, result)


def _by_layer(modules: Sequence[ProjectionModule]) -> list[int]:
    """Return the modules' indices in the order of their layers, as the replay needs them."""
    return sorted(range(len(modules)), key=lambda index: modules[index].layer)
