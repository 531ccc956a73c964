import json
from pathlib import Path

import pytest
import torch

from securetune.analysis import analyze_robustness
from securetune.artifacts import RobustnessReport, read_artifact, write_json
from securetune.config import AnalysisSettings, validate
from securetune.data.prompts import ProbeSet
from securetune.errors import ConfigError, RunError
from securetune.features import (
    MeanAblation,
    UpdatePerturbation,
    fit_probe,
    last_token_states,
    make_batches,
    mean_outputs,
    openings_from_phrases,
    refusal_margin,
)
from securetune.models import ChatModel, map_modules

# A random model does not begin refusals in any way of its own.
PHRASES = {"refusal_openings": ("sorry",), "compliance_openings": ("yes", "sure")}


def _updates(chat: ChatModel, runs: int) -> UpdatePerturbation:
    generator = torch.Generator().manual_seed(0)
    shapes = {m.name: chat.model.get_parameter(m.weight_name).shape for m in map_modules(chat.model)}
    return UpdatePerturbation(
        [{name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(runs)]
    )


def _survives_its_file(report: RobustnessReport, path: Path) -> bool:
    write_json(path, report)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    return read_artifact(path, RobustnessReport) == report


def _assert_complete(report: RobustnessReport, chat: ChatModel) -> None:
    assert [module.name for module in report.modules] == [module.name for module in map_modules(chat.model)]
    for module in report.modules:
        assert 0 <= module.accuracy_low <= module.accuracy <= module.accuracy_high <= 1
        assert module.margin_fall_low < module.margin_fall < module.margin_fall_high
        assert module.refusal_margin_fall_low < module.refusal_margin_fall < module.refusal_margin_fall_high
        assert 0 <= module.refusal_share_low <= module.refusal_share <= module.refusal_share_high <= 1
        assert 0 <= module.retrained_accuracy <= 1
        assert min(module.sampled_shift, module.refusal_sampled_shift) > 0
        for row in (module.drift, module.layer_accuracy):
            assert [value is None for value in row] == [layer < module.layer for layer in range(2)]
        for layer in range(module.layer, 2):
            assert module.drift_low[layer] <= module.drift[layer] <= module.drift_high[layer]
            low, high = module.layer_accuracy_low[layer], module.layer_accuracy_high[layer]
            assert 0 <= low <= module.layer_accuracy[layer] <= high <= 1
    assert len(report.layer_accuracies) == 2
    assert len(report.controls) == 4
    assert report.refusal_openings.refusal == ["sorry"]
    assert report.refusal_openings.compliance == ["yes", "sure"]


@pytest.fixture
def ablation(tiny_chat_model: ChatModel, tiny_probes: ProbeSet) -> MeanAblation:
    """The ablation that the analysis should make: means over harmful and harmless fitting prompts."""
    prompts = [*tiny_probes.fit_harmful, *tiny_probes.fit_harmless]
    batches = make_batches(tiny_chat_model.tokenizer, prompts, 64, tiny_chat_model.model.device)
    return MeanAblation(mean_outputs(tiny_chat_model.model, map_modules(tiny_chat_model.model), batches))


def test_the_analysis_by_mean_ablation_is_complete(tiny_chat_model: ChatModel, tiny_probes: ProbeSet, tmp_path: Path):
    """All that needs no first order is there, the closed form is said to be lacking, and it survives its file."""
    before = {name: value.clone() for name, value in tiny_chat_model.model.state_dict().items()}
    report = analyze_robustness(tiny_chat_model, tiny_probes, AnalysisSettings(perturbation="mean", **PHRASES))
    _assert_complete(report, tiny_chat_model)
    assert all(m.closed_form_shift is m.refusal_closed_form_shift is None for m in report.modules)
    assert report.closed_form_at_epsilon is None
    assert [point["epsilon"] for point in report.calibration] == [0.25, 0.5, 0.75, 1.0]
    assert report.epsilon in MeanAblation.grid
    assert report.settings["perturbation"] == "mean"
    assert _survives_its_file(report, tmp_path / "robustness.json")
    assert all(torch.equal(value, before[name]) for name, value in tiny_chat_model.model.state_dict().items())
    linear_maps = [tiny_chat_model.model.get_submodule(module.name) for module in report.modules]
    assert not any(linear_map._forward_hooks for linear_map in linear_maps)


def test_the_figures_of_mean_ablation_are_those_of_ablating_by_hand(
    tiny_chat_model: ChatModel, tiny_probes: ProbeSet, ablation: MeanAblation
):
    """Accuracy, fall, share and shift of both readouts follow from their definitions."""
    settings = AnalysisSettings(perturbation="mean", epsilon=0.75, controls=False, **PHRASES)
    report = analyze_robustness(tiny_chat_model, tiny_probes, settings)
    model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
    classifier = fit_probe(tiny_chat_model, tiny_probes, 64).classifier
    margin = refusal_margin(tiny_chat_model, openings_from_phrases(tiny_chat_model, ["sorry"], ["yes", "sure"]))
    intact = last_token_states(model, tokenizer, tiny_probes.score_harmful)
    assert report.refusal_openings.intact_margin == pytest.approx(margin.logits(intact).mean().item(), rel=1e-4)
    for index in (2, 6, 11):
        with ablation.applied(model, [map_modules(model)[index]], 0.75, seed=0):
            states = last_token_states(model, tokenizer, tiny_probes.score_harmful)
        entry = report.modules[index]
        for readout, share, fall, shift in (
            (classifier, entry.accuracy, entry.margin_fall, entry.sampled_shift),
            (margin, entry.refusal_share, entry.refusal_margin_fall, entry.refusal_sampled_shift),
        ):
            moved = readout.logits(states).double() - readout.logits(intact).double()
            assert share == pytest.approx((readout.logits(states) > 0).double().mean().item())
            assert fall == pytest.approx(-moved.mean().item(), rel=1e-3, abs=1e-4)
            assert shift == pytest.approx(moved.square().mean().sqrt().item(), rel=1e-3)


def test_the_analysis_by_an_update_is_complete(tiny_chat_model: ChatModel, tiny_probes: ProbeSet, tmp_path: Path):
    """The two runs are the draws, both scores have a closed form, and it survives its file."""
    before = {name: value.clone() for name, value in tiny_chat_model.model.state_dict().items()}
    report = analyze_robustness(
        tiny_chat_model,
        tiny_probes,
        AnalysisSettings(perturbation="update", **PHRASES),
        perturbation=_updates(tiny_chat_model, runs=2),
    )
    _assert_complete(report, tiny_chat_model)
    assert all(min(m.closed_form_shift, m.refusal_closed_form_shift) > 0 for m in report.modules)
    assert report.closed_form_at_epsilon.noise_seeds == 2
    assert [point["epsilon"] for point in report.calibration] == list(UpdatePerturbation.grid)
    assert _survives_its_file(report, tmp_path / "robustness.json")
    assert all(torch.equal(value, before[name]) for name, value in tiny_chat_model.model.state_dict().items())


def test_a_small_update_shifts_as_its_closed_form_says(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Where the first order holds, closed form and sampled shift agree module by module, for both readouts."""
    settings = AnalysisSettings(perturbation="update", epsilon=0.02, controls=False, **PHRASES)
    kind = _updates(tiny_chat_model, runs=2)
    report = analyze_robustness(tiny_chat_model, tiny_probes, settings, perturbation=kind)
    for module in report.modules:
        assert module.closed_form_shift == pytest.approx(module.sampled_shift, rel=0.02)
        assert module.refusal_closed_form_shift == pytest.approx(module.refusal_sampled_shift, rel=0.02)
    assert report.closed_form_at_epsilon.spearman > 0.98
    assert report.closed_form_at_epsilon.median_ratio == pytest.approx(1.0, abs=0.01)


def test_every_run_of_an_update_counts_in_both_scores(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """With more runs than noise seeds, the sampled shift is over the same runs as the closed form."""
    settings = AnalysisSettings(
        perturbation="update", epsilon=0.02, noise_seeds=2, update_runs=4, controls=False, **PHRASES
    )
    report = analyze_robustness(tiny_chat_model, tiny_probes, settings, perturbation=_updates(tiny_chat_model, runs=4))
    for module in report.modules:
        assert module.closed_form_shift == pytest.approx(module.sampled_shift, rel=0.02)


def test_an_update_without_its_runs_is_refused(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """What is lacking is named, before anything is computed."""
    with pytest.raises(ConfigError, match="update needs fine-tuning runs on your data"):
        analyze_robustness(tiny_chat_model, tiny_probes, AnalysisSettings(perturbation="update", **PHRASES))


def test_activation_checkpointing_changes_no_figure(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """It only takes less memory."""
    reports = [
        analyze_robustness(
            tiny_chat_model,
            tiny_probes,
            AnalysisSettings(epsilon=1.0, noise_seeds=2, controls=False, activation_checkpointing=on, **PHRASES),
        )
        for on in (False, True)
    ]
    for first, second in zip(reports[0].modules, reports[1].modules, strict=True):
        assert second.closed_form_shift == pytest.approx(first.closed_form_shift, rel=1e-4)
        assert second.refusal_closed_form_shift == pytest.approx(first.refusal_closed_form_shift, rel=1e-4)


def test_controls_can_be_left_out(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Then there are none, and no module has a retrained accuracy."""
    settings = AnalysisSettings(epsilon=1.0, noise_seeds=2, controls=False, **PHRASES)
    report = analyze_robustness(tiny_chat_model, tiny_probes, settings)
    assert report.controls == ()
    assert all(module.retrained_accuracy is None for module in report.modules)


def test_without_openings_the_refusal_margin_is_left_out_with_a_warning(
    tiny_chat_model: ChatModel, tiny_probes: ProbeSet, tmp_path: Path
):
    """A random model answers all prompts alike; its report says so instead of measuring nonsense."""
    settings = AnalysisSettings(epsilon=1.0, noise_seeds=2, controls=False)
    with pytest.warns(UserWarning, match=r"refusal margin is not measured.*Give analysis\.refusal_openings"):
        report = analyze_robustness(tiny_chat_model, tiny_probes, settings)
    assert report.refusal_openings is report.refusal_closed_form_small_noise is None
    for module in report.modules:
        assert {value for name, value in module.model_dump().items() if name.startswith("refusal")} == {None}
    assert _survives_its_file(report, tmp_path / "robustness.json")


@pytest.mark.parametrize("lacking", PHRASES)
def test_one_list_of_openings_alone_is_refused(lacking: str):
    """Neither is silently ignored, and no model is loaded to find out."""
    with pytest.raises(ConfigError, match="must be given together"):
        validate(AnalysisSettings, {**PHRASES, lacking: None})


def test_a_broken_checkpoint_stops_the_analysis_with_its_layer(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """No score is computed from what is not a number, whatever the perturbation."""
    with torch.no_grad():
        tiny_chat_model.model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    for kind in ("gaussian", "mean"):
        with pytest.raises(RunError, match="states after layer 1 "):
            analyze_robustness(tiny_chat_model, tiny_probes, AnalysisSettings(perturbation=kind, **PHRASES))
