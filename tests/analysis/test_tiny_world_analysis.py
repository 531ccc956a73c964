import pytest

from securetune.analysis import analyze_robustness
from securetune.artifacts import RobustnessReport
from securetune.config import AnalysisSettings, ProbeSettings, SearchSettings
from securetune.data.prompts import load_probes
from securetune.features import fit_probe
from securetune.models import load
from securetune.search import JointTest, control_set, search_robust_modules

PROBES = load_probes(ProbeSettings(max_prompts=48), "tiny-world")


@pytest.fixture(scope="module")
def report() -> RobustnessReport:
    """The analysis of the shipped aligned checkpoint."""
    return analyze_robustness(load("tiny-world"), PROBES, AnalysisSettings(controls=False))


def test_the_classifier_tells_unseen_requests_apart(report: RobustnessReport):
    """On (action, object) pairs that neither the model's training nor the classifier's fit has seen."""
    assert report.classifier["scored_harmful_accuracy"] >= 0.9
    assert report.classifier["scored_harmless_accuracy"] >= 0.9


def test_the_closed_form_predicts_the_sampled_shift(report: RobustnessReport):
    """In order and in size, both where the first order must hold and at the calibrated noise."""
    small, large = report.closed_form_small_noise, report.closed_form_at_epsilon
    assert small.spearman >= 0.9
    # A perfect one shows about 1.02: the median of 16 draws is a little too small.
    assert 0.95 <= small.median_ratio <= 1.1
    assert large.spearman >= 0.85
    assert 0.75 <= large.median_ratio <= 1.3


def test_the_first_layer_is_the_most_sensitive(report: RobustnessReport):
    """The paper's pattern A, by accuracy, by sampled shift and in closed form."""

    def by_layer(score: str) -> list[float]:
        return [sum(getattr(m, score) for m in report.modules if m.layer == layer) for layer in range(6)]

    accuracy, sampled, closed_form = (by_layer(s) for s in ("accuracy", "sampled_shift", "closed_form_shift"))
    assert accuracy.index(min(accuracy)) == 0
    assert sampled.index(max(sampled)) == closed_form.index(max(closed_form)) == 0


def test_calibration_finds_a_size_that_discriminates(report: RobustnessReport):
    """At the chosen size the modules' accuracies differ."""
    assert report.settings["calibration_discriminates"]


def test_the_searched_half_stands_a_noise_that_its_control_does_not(report: RobustnessReport):
    """Perturbed jointly by the same noise, the robust half keeps its accuracy and the sensitive half does not."""
    chat, settings = load("tiny-world"), SearchSettings()
    manifest, _ = search_robust_modules(chat, PROBES, report, settings)
    test = JointTest(chat, PROBES.score_harmful, fit_probe(chat, PROBES, 64).classifier, settings)
    sensitive = control_set(report, manifest, "sensitive", test=test)
    assert manifest.parameter_fraction >= 0.5
    assert manifest.joint_accuracy >= manifest.intact_accuracy - settings.tolerance
    assert sensitive.joint_accuracy < manifest.intact_accuracy - 2 * settings.tolerance
