import pytest
import torch
from search_cases import FakeJointTest, make_report

from securetune.analysis import analyze_robustness
from securetune.artifacts import RobustModules, RobustnessReport, read_artifact, write_json
from securetune.config import AnalysisSettings, SearchSettings
from securetune.data.prompts import ProbeSet
from securetune.errors import ArtifactError, RunError
from securetune.features import fit_probe, last_token_states, perturbed
from securetune.models import ChatModel, load, map_modules
from securetune.search import JointTest, rank_modules, search_robust_modules
from securetune.search.joint_noise import choose_joint_epsilon, random_sets
from securetune.search.robust_modules import _steps

NAMES = [f"{layer}.V" for layer in range(8)]
RANKED = NAMES[::-1]  # deeper first


def _run(judge, sizes: dict[str, int] | None = None, **settings: object) -> tuple[list[str], list[dict]]:
    report = make_report(dict.fromkeys(NAMES, 1.0), {}, sizes=sizes)
    chosen: list[str] = []
    steps = []
    for step, joined in _steps(
        FakeJointTest(judge), report, rank_modules(report), SearchSettings(**settings), epsilon=1.0
    ):
        steps.append(step)
        chosen += step["candidates"] if joined else []
    return chosen, steps


def test_chunks_join_in_order_until_the_target_is_reached():
    """With nothing in the way, the most robust half is taken, chunk by chunk."""
    chosen, steps = _run(lambda names, epsilon: 1.0, chunk_size=2)
    assert chosen == RANKED[:4]
    assert [step["decision"] for step in steps] == ["joined", "joined"]
    assert [step["set_size"] for step in steps] == [2, 4]
    assert steps[-1]["parameter_fraction"] == 0.5


def test_a_refused_chunk_is_halved_down_to_the_culprit_which_is_skipped():
    """One bad module costs its chunk nothing but three more tests."""
    chosen, steps = _run(lambda names, epsilon: 0.5 if "5.V" in names else 1.0, chunk_size=4, target_fraction=1.0)
    assert chosen == [name for name in RANKED if name != "5.V"]
    assert [(step["candidates"], step["decision"]) for step in steps[:5]] == [
        (["7.V", "6.V", "5.V", "4.V"], "halved"),
        (["7.V", "6.V"], "joined"),
        (["5.V", "4.V"], "halved"),
        (["5.V"], "skipped"),
        (["4.V"], "joined"),
    ]


def test_modules_that_are_robust_alone_but_not_together_do_not_all_join():
    """Pattern C: every set of up to three passes, none of four does."""
    chosen, _ = _run(lambda names, epsilon: 1.0 if len(names) <= 3 else 0.5, target_fraction=1.0)
    assert chosen == RANKED[:3]


def test_a_fall_of_exactly_the_tolerance_is_allowed():
    """The limit belongs to what is tolerated."""
    assert _run(lambda names, epsilon: 0.75, tolerance=0.25)[0] == RANKED[:4]
    assert _run(lambda names, epsilon: 0.7499, tolerance=0.25)[0] == []


def test_a_chunk_is_cut_where_the_target_is_reached():
    """A chunk of four does not take the set to twice the asked size."""
    chosen, steps = _run(lambda names, epsilon: 1.0, chunk_size=4, target_fraction=0.25)
    assert chosen == steps[0]["candidates"] == RANKED[:2]


def test_the_whole_set_is_tested_at_every_step():
    """The set grows, and each test perturbs all of it, not the newcomers alone."""
    tested: list[int] = []
    _run(lambda names, epsilon: tested.append(len(names)) or 1.0, chunk_size=2, target_fraction=1.0)
    assert tested == [2, 4, 6, 8]


def test_the_joint_noise_is_where_random_sets_fall_by_three_tolerances():
    """With an accuracy that falls in proportion to ε and to the set's size, the right ε is found within a step."""
    report = make_report(dict.fromkeys(NAMES, 1.0), {})
    test = FakeJointTest(lambda names, epsilon: max(0.0, 1 - 0.01 * epsilon * len(names)))
    noise = choose_joint_epsilon(test, report, SearchSettings(tolerance=0.05))
    assert noise.aimed_accuracy == pytest.approx(0.85)
    assert noise.epsilon == pytest.approx(15 / 4, rel=0.2)  # 0.01 · ε · 4 modules = 0.15
    assert [trial["epsilon"] for trial in noise.trials] == sorted(trial["epsilon"] for trial in noise.trials)


def test_the_aimed_fall_is_never_more_than_half_way_to_chance():
    """A wide tolerance does not ask for sets that are broken altogether."""
    report = make_report(dict.fromkeys(NAMES, 1.0), {})
    test = FakeJointTest(lambda names, epsilon: 1 - 0.1 * epsilon)
    assert choose_joint_epsilon(test, report, SearchSettings(tolerance=0.4)).aimed_accuracy == 0.75


def test_random_sets_hold_the_target_share():
    """Four different sets, each with at least the asked parameters and not a module more than needed."""
    sets = random_sets(make_report(dict.fromkeys(NAMES, 1.0), {}), 0.5, seed=0)
    assert [len(names) for names in sets] == [4] * 4
    assert len({tuple(sorted(names)) for names in sets}) > 1


@pytest.fixture
def analyzed(tiny_chat_model: ChatModel, tiny_probes: ProbeSet) -> RobustnessReport:
    return analyze_robustness(tiny_chat_model, tiny_probes, AnalysisSettings(epsilon=1.0, noise_seeds=2))


def test_a_search_on_a_model_gives_a_manifest_that_fits_it(
    tiny_chat_model: ChatModel, tiny_probes: ProbeSet, analyzed: RobustnessReport, tmp_path
):
    """The chosen modules exist, pass the test that they claim to pass, and survive their file."""
    before = {name: value.clone() for name, value in tiny_chat_model.model.state_dict().items()}
    steps: list[dict] = []
    settings = SearchSettings(epsilon=0.02)
    manifest, trace = search_robust_modules(tiny_chat_model, tiny_probes, analyzed, settings, steps.append)
    assert steps == trace
    chosen = {module.name for module in manifest.modules}
    assert chosen == {name for step in trace if step["decision"] == "joined" for name in step["candidates"]}
    modules = [module for module in map_modules(tiny_chat_model.model) if module.name in chosen]
    assert [module.name for module in modules] == [module.name for module in manifest.modules]
    total = sum(module.parameter_count for module in map_modules(tiny_chat_model.model))
    assert manifest.parameter_fraction == sum(module.parameter_count for module in modules) / total >= 0.5
    assert manifest.joint_accuracy >= manifest.intact_accuracy - settings.tolerance
    assert all(torch.equal(value, before[name]) for name, value in tiny_chat_model.model.state_dict().items())
    write_json(tmp_path / "robust_modules.json", manifest)
    assert read_artifact(tmp_path / "robust_modules.json", RobustModules) == manifest


def test_the_joint_accuracy_is_that_of_perturbing_the_set_by_hand(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Mean over seeds of the share of harmful prompts still recognised, with all the modules perturbed."""
    model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
    classifier = fit_probe(tiny_chat_model, tiny_probes, 64).classifier
    modules = map_modules(model)[3:9]
    rates = []
    for seed in (1000, 1001):
        with perturbed(model, modules, 0.5, seed):
            states = last_token_states(model, tokenizer, tiny_probes.score_harmful)
            rates.append((classifier.logits(states) > 0).double().mean().item())
    test = JointTest(tiny_chat_model, tiny_probes.score_harmful, classifier, SearchSettings(noise_seeds=2))
    assert test.accuracy([module.name for module in modules], 0.5) == pytest.approx(sum(rates) / 2)


def test_a_chosen_noise_is_recorded_with_its_rule_and_trials(
    tiny_chat_model: ChatModel, tiny_probes: ProbeSet, analyzed: RobustnessReport
):
    """The manifest says how ε came about."""
    manifest, _ = search_robust_modules(tiny_chat_model, tiny_probes, analyzed, SearchSettings(tolerance=0.1))
    tried = {trial["epsilon"] for trial in manifest.settings["epsilon_trials"]}
    assert manifest.settings["epsilon"] in tried
    assert "three times the tolerance" in manifest.settings["epsilon_rule"]


def test_the_same_settings_give_the_same_manifest(tiny_model_dir, tiny_probes: ProbeSet, analyzed: RobustnessReport):
    """Whatever was drawn before."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(
            search_robust_modules(load(str(tiny_model_dir)), tiny_probes, analyzed, SearchSettings(epsilon=0.2))
        )
    assert found[0] == found[1]


def test_a_search_that_finds_nothing_says_what_to_change(
    tiny_chat_model: ChatModel,
    tiny_probes: ProbeSet,
    analyzed: RobustnessReport,
    monkeypatch: pytest.MonkeyPatch,
):
    """An empty set is no result."""
    monkeypatch.setattr(JointTest, "accuracy", lambda *arguments: 0.0)
    settings = SearchSettings(epsilon=1.0)
    with pytest.raises(RunError, match=r"no robust module.*Raise search\.tolerance or lower search\.epsilon"):
        search_robust_modules(tiny_chat_model, tiny_probes, analyzed, settings)


def test_an_analysis_of_another_model_or_other_prompts_is_refused(
    tiny_chat_model: ChatModel, tiny_probes: ProbeSet, analyzed: RobustnessReport
):
    """Both are named, before anything is perturbed."""
    other = analyzed.model.model_copy(update={"weights_fingerprint": "other"})
    with pytest.raises(ArtifactError, match="whose weights differ"):
        search_robust_modules(
            tiny_chat_model, tiny_probes, analyzed.model_copy(update={"model": other}), SearchSettings()
        )
    with pytest.raises(ArtifactError, match="other probe prompts"):
        search_robust_modules(tiny_chat_model, tiny_probes._replace(hash="other"), analyzed, SearchSettings())
