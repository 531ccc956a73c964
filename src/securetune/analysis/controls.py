"""Controls on the analysis itself: does the classifier read harm, and is what a perturbation destroys really gone?

Source: the objections raised in review against arXiv 2410.04524. A fixed classifier may fail because features moved,
not because they are lost (hence one fitted anew); a linear map of thousands of dimensions fits anything (hence random
labels, after Hewitt and Liang, arXiv 1909.03368); harmful and harmless prompts may differ in vocabulary alone (hence a
classifier that sees words and no model); and one source of prompts has habits of its own (hence prompts from another).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sklearn
import torch
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import Tensor

from securetune.analysis.module_pass import Execution, measure_modules
from securetune.analysis.partial_results import Values, key_of
from securetune.artifacts import AnalysisControl
from securetune.data.prompts import ProbeSet, Prompt
from securetune.features.classifier import fit_classifier
from securetune.features.hidden_states import last_token_states, make_batches
from securetune.features.perturbation import Perturbation
from securetune.features.probe import SecurityProbe, balanced_accuracy
from securetune.features.replay import open_replay
from securetune.models import ChatModel, ProjectionModule, map_modules

_SHUFFLES = 5
_RETRAINED_SEEDS = 1
_LEAST_SELECTIVITY = 0.2
_LEAST_UNSEEN_ACCURACY = 0.75
_MOST_WORDS_ACCURACY = 0.9
_KEPT_INFORMATION = 0.9


def retrained_accuracies(
    chat: ChatModel,
    probes: ProbeSet,
    perturbation: Perturbation,
    size: float,
    seeds: Sequence[int],
    batch_size: int,
    execution: Execution | None = None,
) -> Float[Tensor, " module"]:
    """Perturb each module, fit a classifier to the perturbed features and score it on other prompts.

    One draw a module: a classifier is fitted anew each time, and the control asks whether information survives at all.

    Args:
        chat: The model.
        probes: All four parts are used.
        perturbation: How modules are disturbed.
        size: Its size.
        seeds: The first is used.
        batch_size: Prompts a forward pass.
        execution: Progress, and where finished modules are kept.
    """
    batches = make_batches(chat.tokenizer, [p for part in probes[:4] for p in part], batch_size, chat.model.device)
    modules, source = map_modules(chat.model), open_replay(chat.model, batches)
    ends, draws = np.cumsum([len(part) for part in probes[:3]]).tolist(), perturbation.draws(seeds)[:_RETRAINED_SEEDS]
    key = key_of(
        model=chat.identity.weights_fingerprint,
        dtype=str(chat.model.dtype),
        device=chat.model.device.type,
        batches=batches,
        parts=ends,
        perturbation=perturbation,
        size=size,
        draws=draws,
        scikit_learn=sklearn.__version__,
        intact=source.final_states(),
    )

    def measure(module: ProjectionModule) -> Values:
        found = []
        for seed in draws:
            with perturbation.applied(chat.model, [module], size, seed):
                states = source.final_states()
            fit_harmful, fit_harmless, harmful, harmless = states.tensor_split(ends)
            found.append(balanced_accuracy(fit_classifier(fit_harmful, fit_harmless), harmful, harmless))
        return {"accuracy": torch.tensor(sum(found) / len(found), dtype=torch.float64)}

    layers, what = max(module.layer for module in modules) + 1, "control: classifiers fitted anew"
    return measure_modules(modules, layers, source, measure, what, key, execution or Execution())["accuracy"]


def analysis_controls(
    chat: ChatModel,
    probes: ProbeSet,
    probe: SecurityProbe,
    retrained: Float[Tensor, " module"],
    accuracies: Float[Tensor, " module"],
    seed: int,
    batch_size: int,
) -> list[AnalysisControl]:
    """Measure the controls and say of each in a sentence whether the analysis stands it.

    Args:
        chat: The intact model.
        probes: Fitting and scored prompts.
        probe: The fitted classifier.
        retrained: Of `retrained_accuracies`.
        accuracies: Accuracy of the unchanged classifier on harmful prompts under the same perturbations, as in the
            sweep.
        seed: Seed of the shuffled labels.
        batch_size: Prompts a forward pass.
    """
    states = [last_token_states(chat.model, chat.tokenizer, prompts, batch_size).cpu() for prompts in probes[:4]]
    return [
        _retrained(retrained, accuracies),
        _random_labels(states, probe, seed),
        _words_alone(probes, probe),
        _unseen_source(chat, probe, probes.unseen, batch_size),
    ]


def _retrained(retrained: Float[Tensor, " module"], accuracies: Float[Tensor, " module"]) -> AnalysisControl:
    """Tell whether falls of the unchanged classifier are lost information or moved features."""
    fallen = accuracies < _KEPT_INFORMATION
    if not fallen.any():
        return AnalysisControl(
            name="retrained classifier",
            value=None,
            passed=None,
            sentence="No perturbation took the unchanged classifier below 90 % of the harmful prompts.",
        )
    lost = retrained[fallen].mean().item()
    moved = lost >= _KEPT_INFORMATION
    fixed = accuracies[fallen].mean().item()
    verdict = (
        "the information has only moved, so the score says where features shift, not where they are lost"
        if moved
        else "part of the information is gone"
    )
    return AnalysisControl(
        name="retrained classifier",
        value=lost,
        passed=not moved,
        sentence=f"Where perturbing a module takes the unchanged classifier below 90 % ({int(fallen.sum())} modules, "
        f"{fixed:.0%} on average), one fitted anew to the perturbed features reaches {lost:.0%}: {verdict}.",
    )


def _random_labels(states: Sequence[Float[Tensor, "_ hidden"]], probe: SecurityProbe, seed: int) -> AnalysisControl:
    """Compare the classifier with ones fitted to shuffled labels: its selectivity."""
    fit_harmful, fit_harmless, harmful, harmless = states
    together = torch.cat([fit_harmful, fit_harmless])
    found, memorised = [], []
    for shuffle in range(_SHUFFLES):
        order = torch.randperm(len(together), generator=torch.Generator().manual_seed(seed + shuffle))
        first, second = together[order[: len(fit_harmful)]], together[order[len(fit_harmful) :]]
        classifier = fit_classifier(first, second)
        found.append(balanced_accuracy(classifier, harmful, harmless))
        memorised.append(balanced_accuracy(classifier, first, second))
    random, real = sum(found) / len(found), balanced_accuracy(probe.classifier, harmful, harmless)
    passed = real - random >= _LEAST_SELECTIVITY
    learned = sum(memorised) / len(memorised)
    return AnalysisControl(
        name="random-label classifier",
        value=random,
        passed=passed,
        sentence=f"On prompts not fitted on, the classifier is right for {real:.0%}, one fitted to shuffled labels for "
        f"{random:.0%} (chance: 50 %; of the shuffled labels themselves it learns {learned:.0%}): "
        + ("it reads the label." if passed else "it reads little more than chance."),
    )


def _words_alone(probes: ProbeSet, probe: SecurityProbe) -> AnalysisControl:
    """Ask how far the words of the prompts, without any model, tell harmful from harmless."""
    texts = [[prompt.text for prompt in part] for part in probes[:4]]
    labels = [1] * len(texts[0]) + [0] * len(texts[1])
    words = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+"),
        LogisticRegression(class_weight="balanced", max_iter=1000),
    ).fit(texts[0] + texts[1], labels)
    right = [float((words.predict(part) == label).mean()) for part, label in ((texts[2], 1), (texts[3], 0))]
    accuracy = sum(right) / 2
    passed = accuracy < _MOST_WORDS_ACCURACY
    return AnalysisControl(
        name="topic-matched harmless prompts",
        value=accuracy,
        passed=passed,
        sentence=f"A classifier that sees the words alone is right for {accuracy:.0%} of the scored prompts: "
        + (
            "the words alone do not give it away."
            if passed
            else "they nearly give it away, so these prompts cannot show that harm is read."
        ),
    )


def _unseen_source(
    chat: ChatModel,
    probe: SecurityProbe,
    unseen: tuple[Sequence[Prompt], Sequence[Prompt]] | None,
    batch_size: int,
) -> AnalysisControl:
    """Score the classifier on prompts of another source."""
    if unseen is None:
        return AnalysisControl(
            name="unseen source",
            value=None,
            passed=None,
            sentence="No prompts from another source were given (probes.unseen_harmful and probes.unseen_harmless).",
        )
    harmful, harmless = (last_token_states(chat.model, chat.tokenizer, part, batch_size) for part in unseen)
    accuracy = balanced_accuracy(probe.classifier, harmful, harmless)
    passed = accuracy >= _LEAST_UNSEEN_ACCURACY
    return AnalysisControl(
        name="unseen source",
        value=accuracy,
        passed=passed,
        sentence=f"On {len(harmful)} harmful and {len(harmless)} harmless prompts from another source "
        f"it is right for {accuracy:.0%}, classes weighing the same: "
        + ("it carries over." if passed else "it does not carry over."),
    )
