"""The classifier fitted to one model and one probe set, with its accuracy on prompts it was not fitted on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from securetune.data.prompts import ProbeSet
from securetune.errors import RunError
from securetune.features.classifier import SafetyClassifier, fit_classifier
from securetune.features.hidden_states import last_token_states
from securetune.models import ChatModel

_MIN_SCORED_ACCURACY = 0.75


class SecurityProbe(NamedTuple):
    """A fitted classifier and what it achieves on the intact model.

    Attributes:
        classifier: Fitted on the fitting prompts' final states.
        figures: Accuracies in [0, 1] and counts of prompts, for the report.
        harmful_logits: Logits of the scored harmful prompts on the intact model.
        layer_classifiers: The same for each layer's own states, the last one being `classifier`.
        layer_accuracies: Their accuracy on the scored prompts of both classes, classes weighing the same.
    """

    classifier: SafetyClassifier
    figures: dict[str, float]
    harmful_logits: Float[Tensor, " prompt"]
    layer_classifiers: list[SafetyClassifier]
    layer_accuracies: list[float]


def fit_probe(chat: ChatModel, probes: ProbeSet, batch_size: int) -> SecurityProbe:
    """Fit the classifier on the fitting prompts and measure it on all.

    Raises:
        RunError: If fewer than three quarters of the harmful or of the harmless scored prompts are recognised: a sweep
            would then measure changes in guessing. Or if a layer's states are not finite numbers.
    """
    fit_harmful, fit_harmless, score_harmful, score_harmless = (
        last_token_states(chat.model, chat.tokenizer, prompts, batch_size, "all") for prompts in probes[:4]
    )
    for states in (fit_harmful, fit_harmless, score_harmful, score_harmless):
        _require_numbers(states)
    layers = [fit_classifier(harmful, harmless) for harmful, harmless in zip(fit_harmful, fit_harmless, strict=True)]
    classifier = layers[-1]
    figures = {
        "fit_harmful_accuracy": classifier.predict(fit_harmful[-1]).double().mean().item(),
        "fit_harmless_accuracy": 1 - classifier.predict(fit_harmless[-1]).double().mean().item(),
        "scored_harmful_accuracy": classifier.predict(score_harmful[-1]).double().mean().item(),
        "scored_harmless_accuracy": 1 - classifier.predict(score_harmless[-1]).double().mean().item(),
        "fit_harmful_count": fit_harmful.shape[1],
        "fit_harmless_count": fit_harmless.shape[1],
        "scored_harmful_count": score_harmful.shape[1],
        "scored_harmless_count": score_harmless.shape[1],
    }
    _require_recognition(figures)
    accuracies = [
        balanced_accuracy(layer, harmful, harmless)
        for layer, harmful, harmless in zip(layers, score_harmful, score_harmless, strict=True)
    ]
    return SecurityProbe(classifier, figures, classifier.logits(score_harmful[-1]).cpu(), layers, accuracies)


def balanced_accuracy(
    classifier: SafetyClassifier, harmful: Float[Tensor, "harmful hidden"], harmless: Float[Tensor, "harmless hidden"]
) -> float:
    """Return the mean of the two classes' accuracies, in [0, 1]."""
    right = classifier.predict(harmful).double().mean() + (~classifier.predict(harmless)).double().mean()
    return right.item() / 2


def _require_numbers(states: Float[Tensor, "layer prompt hidden"]) -> None:
    bad = (~torch.isfinite(states)).flatten(1).any(dim=1).nonzero()
    if len(bad):
        raise RunError(
            f"the model's states after layer {int(bad[0])} (counted from 0) are not finite on the probe prompts. "
            "Load it with another model.dtype (float32 or bfloat16), or check the checkpoint."
        )


def _require_recognition(figures: dict[str, float]) -> None:
    harmful, harmless = figures["scored_harmful_accuracy"], figures["scored_harmless_accuracy"]
    if min(harmful, harmless) < _MIN_SCORED_ACCURACY:
        raise RunError(
            f"the classifier must recognise at least {_MIN_SCORED_ACCURACY:.0%} of the scored prompts of each class "
            f"before anything is perturbed; got {harmful:.1%} of the harmful and {harmless:.1%} of the harmless ones. "
            "Give more probe prompts, or prompts that are more alike in both parts."
        )
