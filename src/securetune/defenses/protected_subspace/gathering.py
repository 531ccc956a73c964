"""From a start model to the directions in which harmful requests and its own answers enter its projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from securetune.artifacts import sha256_json
from securetune.data.prompts import Prompt
from securetune.defenses.own_answers import own_answers
from securetune.defenses.protected_subspace.input_moments import InputStatistics, gather_inputs
from securetune.defenses.protected_subspace.options import ProtectedSubspaceOptions
from securetune.defenses.protected_subspace.range_finder import statistics_maker
from securetune.defenses.protected_subspace.spectrum import InputSpectrum
from securetune.models import ProjectionModule
from securetune.processes import Processes


class Subspaces(NamedTuple):
    """The directions of each protected weight's input, and what they were gathered from.

    Attributes:
        spectra: Path of a weight → the directions of its input; weights that share an input share the object.
        energies: Name of a projection → the share of the energy that is asked for.
        tokens: Number of tokens that were gathered.
    """

    spectra: Mapping[str, InputSpectrum]
    energies: Mapping[str, float]
    tokens: int

    def rank(self, module: ProjectionModule) -> int:
        """Return how many directions are protected at a projection."""
        return self.spectra[module.path].rank_for(self.energies[module.name])

    def directions(self, module: ProjectionModule) -> Tensor:
        """Return the protected directions of a projection."""
        return self.spectra[module.path].vectors[:, : self.rank(module)]


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """Hash the messages of prompts, in their order."""
    return sha256_json([[dict(message) for message in prompt.messages] for prompt in prompts])


def gather_subspaces(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    modules: Sequence[ProjectionModule],
    energies: Mapping[str, float],
    options: ProtectedSubspaceOptions,
) -> Subspaces:
    """Let the model answer the prompts, and find the directions in which both enter its projections.

    Args:
        model: The start model, whole; adapters that change nothing yet may be in place.
        tokenizer: The model's.
        prompts: What to gather from.
        modules: The projections to protect.
        energies: Name of each → the share of the energy to hold.
        options: How to gather.
    """
    was_training = model.training
    model.eval()
    try:
        messages = [prompt.messages for prompt in prompts]
        rows = own_answers(model, tokenizer, messages, options.max_new_tokens, options.batch_size)
        holders = {module.path: module.holder_in(model) for module in modules}
        make = statistics_maker(options.range_finder, options.sketch_size, options.seed)
        statistics = gather_inputs(model, holders, rows, options.batch_size, make)
    finally:
        model.train(was_training)
    spectra = _cut_spectra(statistics, modules, energies, options.tail_pull)
    return Subspaces(spectra, dict(energies), sum(map(len, rows)))


def _cut_spectra(
    statistics: Mapping[str, InputStatistics],
    modules: Sequence[ProjectionModule],
    energies: Mapping[str, float],
    tail_pull: float,
) -> dict[str, InputSpectrum]:
    """Decompose each distinct input, one at a time, and keep as many directions as the highest energy there needs."""
    highest: dict[int, float] = {}
    for module in modules:
        shared = id(statistics[module.path])
        highest[shared] = max(highest.get(shared, 0.0), energies[module.name])
    cut: dict[int, InputSpectrum] = {}
    for each in statistics.values():
        if id(each) not in cut:
            found = each.spectrum()
            cut[id(each)] = found.cut(len(found.shares(highest[id(each)], tail_pull)))
    return {path: cut[id(each)] for path, each in statistics.items()}


def shared_subspaces(found: Subspaces | None, processes: Processes) -> Subspaces:
    """Return in every process what the main one has found, an input at a time; in a lone process, just that.

    Args:
        found: What the main process has found; the others give None.
        processes: Which they are.
    """
    if processes.count == 1:
        assert found is not None
        return found
    distinct = {id(each): each for each in found.spectra.values()} if found else {}
    places = {path: [*distinct].index(id(each)) for path, each in found.spectra.items()} if found else {}
    where, energies, tokens = processes.from_main((places, dict(found.energies), found.tokens) if found else None)
    spectra = []
    for place in range(1 + max(where.values(), default=-1)):
        spectra.append(processes.from_main([*distinct.values()][place].on_cpu() if found else None))
    return Subspaces({path: spectra[place] for path, place in where.items()}, energies, tokens)
