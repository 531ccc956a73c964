"""The joint test in closed form: what noise on a whole set of modules does to the classifier, without sampling.

Noise of different modules is independent, so to first order the shifts that they cause add up as variances: with s_i
the closed-form shift of module i on a prompt at ε = 1 and z the intact logit of that prompt, the perturbed logit is
normal around z with standard deviation ε·sqrt(Σ s_i²), and the prompt stays recognised with probability Φ(z / (ε·sqrt(Σ
s_i²))).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from securetune.data.prompts import Prompt
from securetune.features.classifier import SafetyClassifier
from securetune.features.closed_form import closed_form_shifts
from securetune.features.hidden_states import last_token_states
from securetune.models import ChatModel, map_modules


class JointPredictor:
    """Predicts the joint accuracy of any set of modules from one forward and backward pass.

    Args:
        chat: The intact model.
        prompts: Harmful requests.
        classifier: Fitted on the intact model.
        batch_size: Prompts a pass.
    """

    def __init__(
        self, chat: ChatModel, prompts: Sequence[Prompt], classifier: SafetyClassifier, batch_size: int
    ) -> None:
        shifts = closed_form_shifts(chat, prompts, classifier, 1.0, batch_size)
        names = [module.name for module in map_modules(chat.model)]
        self._variances = dict(zip(names, shifts.square(), strict=True))
        states = last_token_states(chat.model, chat.tokenizer, prompts, batch_size)
        self._intact = classifier.logits(states).double().cpu()

    def accuracy(self, names: Collection[str], epsilon: float) -> float:
        """Return the expected accuracy on the prompts with all the named modules perturbed, in [0, 1].

        Args:
            names: Modules, as `map_modules` names them; at least one.
            epsilon: Relative noise size.
        """
        deviation = epsilon * torch.stack([self._variances[name] for name in sorted(names)]).sum(dim=0).sqrt()
        return torch.special.ndtr(self._intact / deviation).mean().item()
