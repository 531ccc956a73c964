"""The classifier fitted to one model and one probe set, with its accuracy on prompts it was not fitted on."""

from __future__ import annotations

from typing import NamedTuple

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
        classifier: Fitted on the fitting prompts.
        figures: Accuracies in [0, 1] and counts of prompts, for the report.
        harmful_logits: Logits of the scored harmful prompts on the intact model.
    """

    classifier: SafetyClassifier
    figures: dict[str, float]
    harmful_logits: Float[Tensor, " prompt"]


def fit_probe(chat: ChatModel, probes: ProbeSet, batch_size: int) -> SecurityProbe:
    """Fit the classifier on the fitting prompts and measure it on all.

    Raises:
        RunError: If fewer than three quarters of the harmful or of the harmless scored prompts are recognised: a sweep
            would then measure changes in guessing.
    """
    fit_harmful, fit_harmless, score_harmful, score_harmless = (
        last_token_states(chat.model, chat.tokenizer, prompts, batch_size) for prompts in probes[:4]
    )
    classifier = fit_classifier(fit_harmful, fit_harmless)
    figures = {
        "fit_harmful_accuracy": classifier.predict(fit_harmful).double().mean().item(),
        "fit_harmless_accuracy": 1 - classifier.predict(fit_harmless).double().mean().item(),
        "scored_harmful_accuracy": classifier.predict(score_harmful).double().mean().item(),
        "scored_harmless_accuracy": 1 - classifier.predict(score_harmless).double().mean().item(),
        "fit_harmful_count": len(fit_harmful),
        "fit_harmless_count": len(fit_harmless),
        "scored_harmful_count": len(score_harmful),
        "scored_harmless_count": len(score_harmless),
    }
    _require_recognition(figures)
    return SecurityProbe(classifier, figures, classifier.logits(score_harmful).cpu())


def _require_recognition(figures: dict[str, float]) -> None:
    harmful, harmless = figures["scored_harmful_accuracy"], figures["scored_harmless_accuracy"]
    if min(harmful, harmless) < _MIN_SCORED_ACCURACY:
        raise RunError(
            f"the classifier must recognise at least {_MIN_SCORED_ACCURACY:.0%} of the scored prompts of each class "
            f"before anything is perturbed; got {harmful:.1%} of the harmful and {harmless:.1%} of the harmless ones. "
            "Give more probe prompts, or prompts that are more alike in both parts."
        )
