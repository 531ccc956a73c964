import json
import warnings
from pathlib import Path

import pytest
import torch

from securetune.analysis import analyze_robustness, sweep_modules
from securetune.analysis.calibration import calibrate_epsilon, evenly_taken, grid_point
from securetune.artifacts import RobustnessReport, read_artifact, write_json
from securetune.config import AnalysisSettings
from securetune.data.prompts import ProbeSet
from securetune.errors import RunError
from securetune.features import GaussianPerturbation, fit_probe, last_token_states, perturbed
from securetune.models import ChatModel, load, map_modules

# A random model does not begin refusals in any way of its own.
OPENINGS = {"refusal_openings": ("sorry",), "compliance_openings": ("yes", "sure")}
SETTINGS = AnalysisSettings(noise_seeds=3, batch_size=16, **OPENINGS)


def test_a_report_has_every_module_and_survives_its_file(
    tiny_chat_model: ChatModel, tiny_probes: ProbeSet, tmp_path: Path
):
    """Each module once, in the model's order, its intervals around its means; read back, the report is the same."""
    report = analyze_robustness(tiny_chat_model, tiny_probes, SETTINGS)
    assert [module.name for module in report.modules] == [module.name for module in map_modules(tiny_chat_model.model)]
    for module in report.modules:
        assert 0 <= module.accuracy_low <= module.accuracy <= module.accuracy_high <= 1
        assert module.margin_fall_low < module.margin_fall < module.margin_fall_high
        assert module.sampled_shift > 0 < module.closed_form_shift
    assert [point["epsilon"] for point in report.calibration] == list(GaussianPerturbation.grid)
    assert report.epsilon in GaussianPerturbation.grid
    assert (report.model, report.prompt_set_hash) == (tiny_chat_model.identity, tiny_probes.hash)
    write_json(tmp_path / "robustness.json", report)
    assert read_artifact(tmp_path / "robustness.json", RobustnessReport) == report
    json.loads((tmp_path / "robustness.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_the_figures_are_those_of_perturbing_by_hand(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Accuracy, margin fall and shift of a module follow from their definitions."""
    settings = AnalysisSettings(epsilon=1.0, noise_seeds=2, seed=7, **OPENINGS)
    report = analyze_robustness(tiny_chat_model, tiny_probes, settings)
    model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
    probe = fit_probe(tiny_chat_model, tiny_probes, 64)
    for index in (0, 9):
        rows = []
        for seed in (7, 8):
            with perturbed(model, [map_modules(model)[index]], 1.0, seed):
                rows.append(probe.classifier.logits(last_token_states(model, tokenizer, tiny_probes.score_harmful)))
        logits = torch.stack(rows)
        entry = report.modules[index]
        assert entry.accuracy == pytest.approx((logits > 0).double().mean().item())
        assert entry.margin_fall == pytest.approx((probe.harmful_logits - logits).mean().item(), rel=1e-4, abs=1e-5)
        expected = (logits - probe.harmful_logits).square().mean().sqrt().item()
        assert entry.sampled_shift == pytest.approx(expected, rel=1e-4)


def test_the_model_is_the_same_afterwards_bit_for_bit(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Nothing of hundreds of perturbations is left."""
    before = {name: value.clone() for name, value in tiny_chat_model.model.state_dict().items()}
    analyze_robustness(tiny_chat_model, tiny_probes, SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in tiny_chat_model.model.state_dict().items())


def test_the_same_settings_give_the_same_report(tiny_model_dir: Path, tiny_probes: ProbeSet):
    """Whatever was drawn before; only the durations differ."""
    reports = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        report = analyze_robustness(load(str(tiny_model_dir)), tiny_probes, SETTINGS)
        reports.append(report.model_copy(update={"duration_seconds": {}}))
    assert reports[0] == reports[1]


def test_a_noise_size_of_the_users_is_taken_as_it_is(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """No calibration then; its one entry describes the sweep itself."""
    report = analyze_robustness(tiny_chat_model, tiny_probes, AnalysisSettings(epsilon=0.4, noise_seeds=2, **OPENINGS))
    assert report.epsilon == report.closed_form_at_epsilon.epsilon == 0.4
    assert [point["epsilon"] for point in report.calibration] == [0.4]
    assert report.calibration[0]["mean_accuracy"] == pytest.approx(sum(m.accuracy for m in report.modules) / 14)


def test_progress_counts_layers_run(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Seven modules run both layers and seven the upper one; each part ends with all of that done."""
    calls: list[tuple[str, int, int]] = []
    analyze_robustness(tiny_chat_model, tiny_probes, SETTINGS, lambda *call: calls.append(call))
    ends = [what for what, done, total in calls if done == total == 7 * 2 + 7]
    assert list(dict.fromkeys(ends)) == [
        "calibrating the perturbation (layers run)",
        "perturbing modules (layers run)",
        "checking the closed form (layers run)",
        "control: classifiers fitted anew (layers run)",
    ]
    sweep = [done for what, done, _ in calls if what == "perturbing modules (layers run)"]
    assert sweep == [*range(0, 15, 2), *range(15, 22)]


def test_calibration_takes_the_size_at_which_modules_differ_most(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Every size of the grid is recorded, and the chosen one has the widest spread."""
    probe = fit_probe(tiny_chat_model, tiny_probes, 64)
    chosen = calibrate_epsilon(tiny_chat_model, tiny_probes.score_harmful, probe.classifier, SETTINGS)
    assert chosen.discriminates
    assert max(chosen.grid, key=lambda point: point["accuracy_spread"])["epsilon"] == chosen.epsilon


def test_calibration_says_when_no_size_tells_modules_apart(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Modules that do nothing are all intact at every size; the user is warned and the report says so."""
    classifier = fit_probe(tiny_chat_model, tiny_probes, 64).classifier
    with torch.no_grad():  # without their two outputs, attention and the feed-forward part have no effect at all
        for layer in tiny_chat_model.model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    with pytest.warns(UserWarning, match="no size of the perturbation between 0.125 and 8 tells the modules apart"):
        chosen = calibrate_epsilon(tiny_chat_model, tiny_probes.score_harmful, classifier, SETTINGS)
    assert not chosen.discriminates


def test_modules_without_effect_stop_the_analysis_with_a_sentence(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """An order of modules that all do nothing would be arbitrary."""
    with torch.no_grad():
        tiny_chat_model.model.model.norm.weight.zero_()
    with pytest.raises(RunError, match="must recognise at least 75%"):
        analyze_robustness(tiny_chat_model, tiny_probes, SETTINGS)


def test_spread_is_what_draws_of_noise_do_not_explain():
    """Modules that differ only because each draw differs have no spread; modules that differ in themselves have it."""
    generator = torch.Generator().manual_seed(0)
    by_draw = (torch.rand(400, 2, 1, generator=generator) > 0.5).double().expand(400, 2, 30)
    by_module = (torch.rand(400, 1, 1, generator=generator) > 0.5).double().expand(400, 2, 30)
    assert grid_point(1.0, by_draw)["accuracy_spread"] < 0.15
    assert grid_point(1.0, by_module)["accuracy_spread"] == pytest.approx(0.5, abs=0.02)


def test_prompts_are_taken_at_even_distances(tiny_probes: ProbeSet):
    """A part of the prompts stands for all of them, not for the first topics only."""
    prompts = tiny_probes.score_harmful
    assert evenly_taken(prompts, 12) == prompts[::3]
    assert evenly_taken(prompts, 100) == prompts


def test_the_sweep_does_not_depend_on_how_it_is_divided(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """One seed or size at a time gives what all together give."""
    classifier = fit_probe(tiny_chat_model, tiny_probes, 64).classifier
    together = sweep_modules(tiny_chat_model, tiny_probes.score_harmful, [classifier], [0.5, 1.0], [0, 1])
    alone = sweep_modules(tiny_chat_model, tiny_probes.score_harmful, [classifier], [1.0], [1])
    name = classifier.name
    assert torch.equal(alone.readouts[name].perturbed[0, :, 0], together.readouts[name].perturbed[1, :, 1])


def test_no_warning_is_raised_where_nothing_is_wrong(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """A clean analysis is silent."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        analyze_robustness(tiny_chat_model, tiny_probes, SETTINGS)
    assert [str(warning.message) for warning in caught] == []
