"""Made-up reports, and a joint test whose outcome a function decides, so that the search's steps can be foreseen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from securetune.artifacts import ClosedFormAgreement, ModelIdentity, ModuleRobustness, RobustnessReport
from securetune.features import GaussianPerturbation
from securetune.search import JointTest

IDENTITY = ModelIdentity(
    name="m",
    revision=None,
    architecture="LlamaForCausalLM",
    parameter_count=10,
    weights_fingerprint="w",
    chat_template_hash="t",
)


def make_report(
    accuracies: dict[str, float],
    falls: dict[str, float],
    shifts: dict[str, float] | None = None,
    sizes: dict[str, int] | None = None,
) -> RobustnessReport:
    """Make a report of modules named `layer.type`, each of size 10 unless said otherwise."""
    agreement = ClosedFormAgreement(spearman=1.0, median_ratio=1.0, epsilon=1.0, noise_seeds=2)
    modules = [
        ModuleRobustness(
            name=name,
            type=name.split(".")[1],
            layer=int(name.split(".")[0]),
            parameter_count=(sizes or {}).get(name, 10),
            accuracy=accuracy,
            accuracy_low=accuracy,
            accuracy_high=accuracy,
            margin_fall=falls.get(name, 0.0),
            margin_fall_low=0.0,
            margin_fall_high=0.0,
            sampled_shift=1.0,
            closed_form_shift=(shifts or {}).get(name, 1.0),
        )
        for name, accuracy in accuracies.items()
    ]
    return RobustnessReport(
        model=IDENTITY,
        prompt_set_hash="p",
        settings={},
        epsilon=1.0,
        calibration=[],
        classifier={},
        closed_form_at_epsilon=agreement,
        closed_form_small_noise=agreement,
        modules=modules,
        duration_seconds={},
        environment={},
    )


class FakeJointTest(JointTest):
    """Stands in for `JointTest`: accuracy is what a function of the set and the noise size says."""

    def __init__(self, judge: Callable[[set[str], float], float]) -> None:
        self.intact_accuracy = 1.0
        self._judge = judge
        self._perturbation = GaussianPerturbation()

    def accuracy(self, names: Collection[str], epsilon: float, seeds: Sequence[int] | None = None) -> float:
        """Return the function's verdict."""
        return self._judge(set(names), epsilon)
