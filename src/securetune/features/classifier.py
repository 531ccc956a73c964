"""The security-feature classifier: a linear map from a hidden state to the log-odds of "this request is harmful"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

_MAX_ITERATIONS = 5000


@dataclass(frozen=True)
class SafetyClassifier:
    """Logistic regression with its standardisation folded in: logit z = w·h + b; z > 0 means harmful.

    Attributes:
        weight: w, in float64.
        bias: b.
    """

    weight: Float[Tensor, " hidden"]
    bias: float

    name = "harmfulness classifier"

    def logits(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Return z of each state, in the weight's precision or the states', whichever is higher.

        Differentiable with respect to the states.
        """
        precision = torch.promote_types(states.dtype, self.weight.dtype)
        return states.to(precision) @ self.weight.to(states.device, precision) + self.bias

    def predict(self, states: Float[Tensor, "*batch hidden"]) -> Bool[Tensor, "*batch"]:
        """Tell for each state whether it is taken for a harmful request."""
        return self.logits(states) > 0


def fit_classifier(
    harmful: Float[Tensor, "harmful hidden"], harmless: Float[Tensor, "harmless hidden"], regularisation: float = 1.0
) -> SafetyClassifier:
    """Fit scikit-learn's logistic regression on standardised states and fold the standardisation into it.

    The classes weigh the same, however many prompts each has; otherwise the threshold would move towards the larger.

    Args:
        harmful: States of harmful requests.
        harmless: States of harmless requests.
        regularisation: scikit-learn's C (> 0, inverse strength). 1.0, its default: the states are separable, so an
            unregularised fit would have no finite solution.
    """
    states = torch.cat([harmful, harmless]).detach().double().cpu().numpy()
    labels = np.concatenate([np.ones(len(harmful)), np.zeros(len(harmless))])
    scaler = StandardScaler().fit(states)
    regression = LogisticRegression(C=regularisation, class_weight="balanced", max_iter=_MAX_ITERATIONS)
    regression.fit(scaler.transform(states), labels)
    weight = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weight @ scaler.mean_)
    return SafetyClassifier(torch.tensor(weight, dtype=torch.float64), bias)
