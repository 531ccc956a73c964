"""The stages one by one: each command reads what the one before wrote, prints its result alone, and is not repeated."""

import json

import pytest
from typer.testing import CliRunner

from securetune.artifacts import RobustModules, RobustnessReport, Scores, TrainingResult, read_artifact
from securetune.cli import app

pytestmark = pytest.mark.pipeline

FEW_PROBES = ["--set", "probes.max_prompts=16"]


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def analysis(folder):
    out = folder / "robustness.json"
    settings = [*FEW_PROBES, "--set", "analysis.noise_seeds=2", "--set", "analysis.epsilon=0.3"]
    return out, settings, invoke("analyze", "tiny-world", "--out", out, *settings, "--json")


@pytest.fixture(scope="module")
def manifest(folder, analysis):
    out = folder / "robust_modules.json"
    settings = [*FEW_PROBES, "--set", "search.noise_seeds=2", "--set", "search.epsilon=0.2"]
    return out, settings, invoke("search", analysis[0], "--out", out, *settings, "--json")


@pytest.fixture(scope="module")
def training(folder, manifest):
    out = folder / "tuned"
    settings = ["--set", "training.max_steps=3", "--set", "training.warmup_phase_steps=2"]
    settings += ["--set", "training.max_length=128", "--method", "swat", "--modules", manifest[0]]
    return out, invoke("train", "--model", "tiny-world", "--data", "tiny-world", "--out", out, *settings, "--json")


def test_analyze(analysis):
    """`analyze` writes the report and a picture, and prints the report."""
    out, _, result = analysis
    report = read_artifact(out, RobustnessReport)
    assert RobustnessReport.model_validate(json.loads(result.stdout)) == report
    assert len(report.modules) == 42
    assert out.with_name("heatmap.svg").read_text().lstrip().startswith("<")


def test_analyze_gives_what_is_there(analysis):
    """The same analysis again is read, not repeated, and shown to people in a few lines."""
    out, settings, _ = analysis
    before = out.read_bytes()
    result = invoke("analyze", "tiny-world", "--out", out, *settings)
    assert out.read_bytes() == before
    assert "Most sensitive:" in result.stdout
    assert "Closed form against sampling at 0.3: Spearman" in result.stdout
    assert "Control, random-label classifier: passed." in result.stdout
    other = CliRunner().invoke(app, ["analyze", "tiny-world", "--out", str(out), "--set", "analysis.epsilon=0.4"])
    assert other.exit_code == 2
    assert "holds a result with other settings or prompts" in other.stderr


def test_search(manifest):
    """`search` writes the manifest and its trace, and prints the manifest."""
    out, _, result = manifest
    found = read_artifact(out, RobustModules)
    assert RobustModules.model_validate(json.loads(result.stdout)) == found
    assert found.selection == "searched"
    assert out.with_name("search_trace.jsonl").read_text().count("\n") >= 1


def test_search_gives_what_is_there(manifest, analysis):
    """The same search again is read, not repeated; its modules are printed one a line."""
    out, settings, _ = manifest
    before = out.read_bytes()
    result = invoke("search", analysis[0], "--out", out, *settings)
    assert out.read_bytes() == before
    found = read_artifact(out, RobustModules)
    assert result.stdout.splitlines()[: len(found.modules)] == [module.name for module in found.modules]


def test_search_with_other_prompts(manifest, analysis, folder):
    """A search on other prompts than the analysis' is refused: their figures could not be compared."""
    result = CliRunner().invoke(app, ["search", str(analysis[0]), "--out", str(folder / "other.json")])
    assert result.exit_code == 2
    assert "robustness.json: was made with other prompts" in result.stderr


def test_train(training, manifest):
    """`train` leaves the model in `DIR/model`, and prints what was done with which modules."""
    out, result = training
    document = TrainingResult.model_validate(json.loads(result.stdout))
    assert document == read_artifact(out / "training.json", TrainingResult)
    assert [phase.name for phase in document.phases] == ["warmup", "main"]
    modules = read_artifact(manifest[0], RobustModules).modules
    assert document.robust_modules == [module.name for module in modules]
    assert (out / "model" / "model.safetensors").is_file()


def test_evaluate(training, folder):
    """`evaluate` takes a tuned model, suites and a task, writes scores and answers, and prints the scores."""
    out = folder / "scores"
    few = ["--set", "evaluation.max_prompts=4", "--set", "evaluation.max_new_tokens=8"]
    suites = ["--suite", "tiny-world-harmful", "--suite", "tiny-world-harmless"]
    named = [*suites, "--judge", "tiny-world-oracle", "--task", "tiny-world-query"]
    result = invoke("evaluate", training[0] / "model", "--out", out, *named, *few, "--json")
    scores = Scores.model_validate(json.loads(result.stdout))
    assert scores == read_artifact(out / "scores.json", Scores)
    assert [suite.name for suite in scores.suites] == ["tiny-world-harmful", "tiny-world-harmless"]
    assert scores.task is not None
    for name in ("tiny-world-harmful", "tiny-world-harmless", "tiny-world-query"):
        assert (out / name / "responses.jsonl").read_text().count("\n") == 4
    shown = invoke("evaluate", training[0] / "model", "--out", out, *named, *few).stdout
    assert "tiny-world-harmful, judged by tiny-world-oracle: refused" in shown


def test_report_of_no_run(folder):
    """`report` on a folder without results is one sentence."""
    result = CliRunner().invoke(app, ["report", str(folder / "tuned")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
