import pytest
from search_cases import make_report

from securetune.artifacts import RobustnessReport
from securetune.errors import ArtifactError
from securetune.search import rank_modules
from securetune.search.ranking import default_order

NAMES = [f"{layer}.V" for layer in range(4)]
# Each score puts the modules in another order; the smaller (for accuracy, the larger) the more robust.
SCORES = {
    "accuracy": ("accuracy", [0.6, 0.9, 0.7, 0.8], [1, 3, 2, 0]),
    "margin": ("margin_fall", [3.0, -1.0, 0.5, 2.0], [1, 2, 3, 0]),
    "closed-form": ("closed_form_shift", [0.1, 0.4, 0.3, 0.2], [0, 3, 2, 1]),
    "refusal-margin": ("refusal_margin_fall", [-2.0, 1.0, 5.0, -3.0], [3, 0, 1, 2]),
    "refusal-closed-form": ("refusal_closed_form_shift", [4.0, 2.0, 1.0, 3.0], [2, 1, 3, 0]),
}
LACKING = {
    "closed-form": "its perturbation has no closed form",
    "refusal-margin": "the refusal margin was not defined for this model",
    "refusal-closed-form": "the refusal margin was not defined, or the perturbation has no closed form",
}


def _report() -> RobustnessReport:
    report = make_report(dict.fromkeys(NAMES, 1.0), {})
    columns = {field: values for field, values, _ in SCORES.values()}
    modules = [
        module.model_copy(update={field: values[place] for field, values in columns.items()})
        for place, module in enumerate(report.modules)
    ]
    return report.model_copy(update={"modules": modules})


@pytest.mark.parametrize("order_by", SCORES)
def test_modules_go_by_the_score_that_was_asked_for(order_by: str):
    """The most robust first, whatever the other scores say."""
    assert [module.layer for module in rank_modules(_report(), order_by)] == SCORES[order_by][2]


@pytest.mark.parametrize("order_by", [name for name in SCORES if name != "accuracy"])
def test_ties_of_every_score_go_by_the_papers_patterns(order_by: str):
    """Deeper layers first, and within a layer Q and K last."""
    field = SCORES[order_by][0]
    report = make_report(dict.fromkeys(("0.V", "1.Q", "1.Up", "0.K"), 1.0), {})
    tied = report.model_copy(update={"modules": [m.model_copy(update={field: 2.0}) for m in report.modules]})
    assert [module.name for module in rank_modules(tied, order_by)] == ["1.Up", "1.Q", "0.V", "0.K"]


@pytest.mark.parametrize("order_by", LACKING)
def test_a_score_that_the_analysis_lacks_is_an_error_with_its_reason(order_by: str):
    """Even if only one module lacks it: an order of some of the modules would leave out the others."""
    report = _report()
    changed = report.modules[2].model_copy(update={SCORES[order_by][0]: None})
    lacking = report.model_copy(update={"modules": [*report.modules[:2], changed, report.modules[3]]})
    with pytest.raises(ArtifactError) as caught:
        rank_modules(lacking, order_by)
    assert str(caught.value) == (
        f"search.order_by: {order_by} needs a score that the analysis does not hold ({LACKING[order_by]}). "
        'Use "accuracy", or analyze again.'
    )


def test_a_lacking_score_does_not_disturb_the_other_orders():
    """Where the perturbation has no closed form, accuracy and margins still order."""
    report = _report()
    without = [
        m.model_copy(update={"closed_form_shift": None, "refusal_closed_form_shift": None}) for m in report.modules
    ]
    for order_by in ("accuracy", "margin", "refusal-margin"):
        ranked = rank_modules(report.model_copy(update={"modules": without}), order_by)
        assert [module.layer for module in ranked] == SCORES[order_by][2]


def test_the_default_score_is_the_one_that_foresaw_the_harm():
    """After an analysis by real updates the refusal margin, where it is defined; after any other the paper's score."""
    report = _report()
    by_updates = report.model_copy(update={"settings": {"perturbation": "update"}})
    without = [m.model_copy(update={"refusal_margin_fall": None}) for m in report.modules]
    assert default_order(report) == "accuracy"
    assert default_order(by_updates) == "refusal-margin"
    assert default_order(by_updates.model_copy(update={"modules": without})) == "accuracy"
    assert rank_modules(by_updates) == rank_modules(by_updates, "refusal-margin") != rank_modules(report)
