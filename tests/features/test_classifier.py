import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from securetune.features import fit_classifier


def _states(harmful: int, harmless: int, hidden: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-2, 2, hidden)
    first = (torch.randn(harmful, hidden, generator=generator) + 0.4) * scale + 3
    return first, torch.randn(harmless, hidden, generator=generator) * scale + 3


@pytest.mark.parametrize("harmful_count", [60, 25])
def test_the_classifier_equals_scikit_learns(harmful_count: int):
    """One weight vector gives the same log-odds and decisions as scaler and regression in a row."""
    harmful, harmless = _states(harmful_count, 60)
    features = torch.cat([harmful, harmless]).double().numpy()
    labels = np.r_[np.ones(len(harmful)), np.zeros(len(harmless))]
    reference = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000))
    reference.fit(features, labels)
    ours = fit_classifier(harmful, harmless)
    states = torch.tensor(features)
    np.testing.assert_allclose(ours.logits(states).numpy(), reference.decision_function(features), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(ours.predict(states).numpy(), reference.predict(features) == 1)


def test_with_equal_classes_it_is_plain_logistic_regression():
    """Weighing the classes changes nothing where they are of one size."""
    harmful, harmless = _states(50, 50)
    features = torch.cat([harmful, harmless]).double().numpy()
    scaled = StandardScaler().fit_transform(features)
    plain = LogisticRegression(max_iter=5000).fit(scaled, np.repeat([1, 0], 50))
    ours = fit_classifier(harmful, harmless).logits(torch.tensor(features)).numpy()
    np.testing.assert_allclose(ours, plain.decision_function(scaled), rtol=1e-6, atol=1e-6)


def test_a_feature_that_never_varies_gets_no_say():
    """A constant feature does not divide by zero."""
    harmful, harmless = _states(20, 20)
    harmful[:, 3] = harmless[:, 3] = 5.0
    classifier = fit_classifier(harmful, harmless)
    assert classifier.weight.isfinite().all()
    assert classifier.weight[3].abs() < 1e-9


def test_logits_can_be_differentiated_with_respect_to_the_states():
    """The gradient of a logit is the weight vector, in the states' precision."""
    harmful, harmless = _states(20, 20)
    classifier = fit_classifier(harmful, harmless)
    states = harmful[:4].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.logits(states).sum(), states)
    torch.testing.assert_close(gradient, classifier.weight.float().expand(4, -1))


def test_half_precision_states_are_judged_in_double_precision():
    """The sum over features adds no rounding of its own to a bfloat16 model's states."""
    harmful, harmless = _states(20, 20)
    classifier = fit_classifier(harmful, harmless)
    half = harmful.to(torch.bfloat16)
    torch.testing.assert_close(classifier.logits(half), classifier.logits(half.double()), rtol=0, atol=0)
