import pytest
from search_cases import IDENTITY, FakeJointTest, make_report

from securetune.artifacts import RobustModules
from securetune.errors import ArtifactError
from securetune.search import control_set, rank_modules
from securetune.search.ranking import parameter_fraction, selected_modules

KINDS = ("Q", "V", "Up")
NAMES = [f"{layer}.{kind}" for layer in range(4) for kind in KINDS]
SIZES = {name: 30 if name.endswith("Up") else 10 for name in NAMES}
REPORT = make_report({name: 1 - 0.01 * place for place, name in enumerate(NAMES)}, {}, sizes=SIZES)


def _manifest(count: int) -> RobustModules:
    ranked = rank_modules(REPORT)
    names = [module.name for module in ranked[:count]]
    return RobustModules(
        model=IDENTITY,
        prompt_set_hash="p",
        selection="searched",
        settings={"epsilon": 0.3, "order_by": "accuracy"},
        modules=selected_modules(REPORT, ranked, names),
        parameter_fraction=parameter_fraction(REPORT, names),
        joint_accuracy=0.99,
        intact_accuracy=1.0,
    )


@pytest.mark.parametrize("count", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("kind", ["sensitive", "random"])
def test_a_control_holds_as_many_parameters_as_the_searched_set(kind: str, count: int):
    """Within half of the largest module, whatever the sizes of the modules."""
    manifest = _manifest(count)
    control = control_set(REPORT, manifest, kind)
    assert control.selection == kind
    assert control.parameter_fraction == pytest.approx(manifest.parameter_fraction, abs=15 / 200 + 1e-9)
    assert control.parameter_fraction == parameter_fraction(REPORT, {module.name for module in control.modules})


def test_the_sensitive_control_is_the_other_end_of_the_order():
    """The least robust modules; with half of the parameters each, the two sets share none."""
    manifest = _manifest(6)
    control = control_set(REPORT, manifest, "sensitive")
    assert manifest.parameter_fraction == control.parameter_fraction == 0.5
    assert not {m.name for m in manifest.modules} & {m.name for m in control.modules}
    assert {m.robustness_rank for m in control.modules} == set(range(6, 12))


def test_the_random_control_depends_on_its_seed_alone():
    """Two seeds, two sets; one seed, one set; and the seed is in the manifest."""
    first, again, other = (control_set(REPORT, _manifest(6), "random", seed) for seed in (0, 0, 1))
    assert first == again
    assert {m.name for m in first.modules} != {m.name for m in other.modules}
    assert other.settings["control_seed"] == 1


def test_a_controls_joint_accuracy_is_measured_at_the_manifests_noise_or_left_out():
    """No figure is made up where none was measured."""
    test = FakeJointTest(lambda names, epsilon: 0.6 if epsilon == 0.3 else pytest.fail("another noise"))
    assert control_set(REPORT, _manifest(6), "sensitive", test=test).joint_accuracy == 0.6
    assert control_set(REPORT, _manifest(6), "sensitive").joint_accuracy is None


def test_a_report_of_other_prompts_is_refused():
    """The ranks would not be those behind the manifest."""
    with pytest.raises(ArtifactError, match="different probe prompts"):
        control_set(REPORT.model_copy(update={"prompt_set_hash": "other"}), _manifest(6), "random")
