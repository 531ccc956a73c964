"""Experiments: settings are chosen on other prompts than those compared, methods are matched, failures are told."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from fake_run import Outcome, write_fake_run

from securetune.artifacts import Experiment, TrainingResult, read_artifact, write_json
from securetune.config import ExperimentConfig, check_experiment_config
from securetune.errors import InputError, RunError
from securetune.pipeline import experimenting
from securetune.reporting import experiment_page, frontier_svg, matched_table, summarize_experiment
from securetune.reporting.pairs import holm

SEEDS = (0, 1)
REPORTED = {
    "ift.max_steps-10": Outcome(0.60, 0.80, method="ift"),
    "ift.max_steps-20": Outcome(0.80, 0.98, method="ift"),
    "ift-mild.max_steps-10": Outcome(0.50, 0.80, method="ift"),
    "ift-mild.max_steps-20": Outcome(0.70, 0.97, method="ift"),
    "swat.max_steps-10": Outcome(0.10, 0.60, method="swat", selection="searched"),
    "swat.max_steps-20": Outcome(0.40, 0.99, method="swat", selection="searched"),
    "ml-lr.max_steps-10": Outcome(0.05, 0.30, method="ml-lr", selection="searched"),
    "ml-lr.max_steps-20": Outcome(0.06, 0.40, method="ml-lr", selection="searched"),
}
SELECTED = {**REPORTED, "swat.max_steps-10": Outcome(0.10, 0.99, method="swat", selection="searched")}
"""On the selection prompts the short SWAT looks as good as the long one, and safer."""
LOSSES = {"ift.max_steps-20": 0.100, "swat.max_steps-10": 0.400, "swat.max_steps-20": 0.105, "ml-lr.max_steps-20": 0.2}
CONFIG = {
    "data": "tiny-world",
    "sweep": {"max_steps": [10, 20]},
    "methods": {"ift": {}, "swat": {}, "ml-lr": {}},
    "chains": {"mild": ["wise-ft"]},
    "evaluation": {"suites": ["tiny-world-harmful"], "task": "tiny-world-query"},
    "selection": {"suites": ["tiny-world-harmful@validation"], "task": "tiny-world-query@validation"},
    "seeds": list(SEEDS),
}


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    found = check_experiment_config(CONFIG)
    return found._replace(points=[point for point in found.points if point.label in REPORTED])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all points, whose selection prompts were answered by models with outcomes of their own."""
    path = write_fake_run(tmp_path_factory.mktemp("experiment") / "run", REPORTED, SEEDS, prompts=40)
    other = write_fake_run(tmp_path_factory.mktemp("selection") / "run", SELECTED, SEEDS, prompts=40)
    for label in REPORTED:
        for seed in SEEDS:
            cell = path / "methods" / label / f"seed-{seed}"
            shutil.copytree(other / "methods" / label / f"seed-{seed}" / "evaluation", cell / "selection")
            _set_loss(cell / "training.json", LOSSES.get(label, 1.0))
    (path / "config.yaml").unlink(missing_ok=True)
    return path


def _set_loss(path: Path, loss: float) -> None:
    training = read_artifact(path, TrainingResult)
    phases = [phase.model_copy(update={"last_loss_nats_per_token": loss}) for phase in training.phases]
    write_json(path, training.model_copy(update={"phases": phases}))


@pytest.fixture(scope="module")
def found(config: ExperimentConfig, folder: Path) -> Experiment:
    return summarize_experiment(config, folder)


def test_losses_on_other_data_are_not_matched(folder: Path) -> None:
    """A method with a defense on its data is left out where losses are compared, with the reason."""
    chains = {"mild": {"before": ["safety-mix"]}}
    found = check_experiment_config({**CONFIG, "chains": chains})
    points = [point for point in found.points if point.label in REPORTED]
    by = {each.by: each for each in summarize_experiment(found._replace(points=points), folder).matched}
    assert "ift-mild" in by["task_accuracy"].chosen
    assert "trained on other data than the reference" in by["training_loss"].not_reached["ift-mild"]


def test_every_point_is_summarized(found: Experiment) -> None:
    """Each point has its seeds, both evaluations and the mean of its final losses."""
    points = {point.label: point for point in found.points}
    assert list(points) == [label for label in REPORTED if label.startswith("ift.")] + [
        label for label in points if not label.startswith("ift.")
    ]
    swat = points["swat.max_steps-10"]
    assert swat.seeds == list(SEEDS)
    assert swat.missing == []
    assert swat.values == {"max_steps": 10}
    assert swat.final_loss_nats_per_token == pytest.approx(0.4)
    assert swat.task_accuracy is not None
    assert swat.selection_task_accuracy is not None
    assert swat.selection_task_accuracy.mean > 0.9 > 0.7 > swat.task_accuracy.mean


def test_the_choice_is_made_on_the_selection_prompts(found: Experiment) -> None:
    """The setting that looked good there is compared, though the reported prompts show that it has not learned."""
    (by_accuracy,) = [each for each in found.matched if each.by == "task_accuracy"]
    assert by_accuracy.chosen == {
        "ift": "ift.max_steps-20",
        "ift-mild": "ift-mild.max_steps-20",
        "swat": "swat.max_steps-10",
    }
    assert list(by_accuracy.not_reached) == ["ml-lr"]
    assert 0.85 < by_accuracy.target < 0.96


def test_the_tests_are_corrected_over_the_methods(found: Experiment) -> None:
    """The comparison is by one judge, has intervals for every method, and p values of two comparisons per row."""
    comparison = next(each for each in found.matched if each.by == "task_accuracy").comparison
    assert comparison is not None
    assert comparison.reference == "ift"
    assert len({row.judge for row in comparison.rows if row.judge}) == 1
    for row in comparison.rows:
        tested = [change for change in row.changes.values() if change is not None]
        assert len(tested) == 2
        assert [change.p_holm for change in tested] == pytest.approx(holm([change.p or 0.0 for change in tested]))
    safest = next(row for row in comparison.rows if row.metric == "attack_success_rate" and row.suite)
    change = safest.changes["swat"]
    assert change is not None
    assert change.high < -0.4
    assert change.p_holm is not None
    assert change.p_holm < 0.01


def test_loss_is_matched_where_it_is_known(found: Experiment) -> None:
    """The nearest final loss within the tolerance is taken; a chain changes weights whose loss nobody measured."""
    (by_loss,) = [each for each in found.matched if each.by == "training_loss"]
    assert by_loss.target == pytest.approx(0.1)
    assert by_loss.chosen == {"ift": "ift.max_steps-20", "swat": "swat.max_steps-20"}
    assert "changed after the training" in by_loss.not_reached["ift-mild"]
    assert "within 10%" in by_loss.not_reached["ml-lr"]


def test_the_frontier_has_no_point_that_another_beats(found: Experiment) -> None:
    """A point is on its method's frontier unless another one is at least as accurate and at most as harmful."""
    for point in found.points:
        assert point.asr is not None
        assert point.task_accuracy is not None
        beaten = any(
            other.asr.mean < point.asr.mean and other.task_accuracy.mean > point.task_accuracy.mean
            for other in found.points
            if other.method == point.method and other.asr and other.task_accuracy
        )
        assert not (beaten and point.on_frontier)
    assert all(any(point.on_frontier for point in found.points if point.method == method) for method in ("ift", "swat"))


def test_a_missing_seed_is_told_and_not_chosen(config: ExperimentConfig, folder: Path, tmp_path: Path) -> None:
    """What failed is counted; a setting without all its seeds takes no part in a matched comparison."""
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    shutil.rmtree(copy / "methods" / "swat.max_steps-10" / "seed-1")
    found = summarize_experiment(config, copy)
    assert found.notes == [
        "1 cell has no result, such as swat.max_steps-10 with seed 1. A setting with a missing seed is not chosen "
        "for a matched comparison."
    ]
    by_accuracy = next(each for each in found.matched if each.by == "task_accuracy")
    assert by_accuracy.chosen["swat"] == "swat.max_steps-20"


def test_without_selection_nothing_is_matched(config: ExperimentConfig, folder: Path, tmp_path: Path) -> None:
    """Matched comparisons need prompts to choose on; the points are told all the same."""
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    for path in copy.glob("methods/*/*/selection"):
        shutil.rmtree(path)
    found = summarize_experiment(config, copy)
    assert found.matched == []
    assert all(point.asr for point in found.points)


def test_the_page_shows_what_was_found(found: Experiment) -> None:
    """Both matched tables, every setting, and why a method is missing; names cannot become markup."""
    page = experiment_page(found, "Tiny | <world>")
    assert page.startswith("# Tiny \\| \\<world\\>\n")
    for text in (
        "## At matched task accuracy",
        "## At matched training loss",
        "Not compared: ml-lr;",
        "`swat.max_steps-10`",
    ):
        assert text in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    tables = {line.count(" | ") for line in rows}
    assert len(tables) <= 3
    figure = frontier_svg(found)
    assert figure is not None
    assert figure.lstrip().startswith("<")
    assert matched_table(found.matched[0]).row_count == 3


def test_the_figures_ticks_can_be_told_apart(found: Experiment) -> None:
    """Where all settings are nearly as accurate, the axis has the decimals that its ticks need."""
    points = []
    for place, point in enumerate(found.points):
        assert point.task_accuracy is not None
        close = {"mean": 0.995 + 0.001 * place / len(found.points), "low": 0.994, "high": 0.997}
        points.append(point.model_copy(update={"task_accuracy": point.task_accuracy.model_copy(update=close)}))
    figure = frontier_svg(found.model_copy(update={"points": points}))
    assert figure is not None
    labels = re.findall(r">([\d.]+%)<", figure)
    accuracies = [label for label in labels if label.startswith("99.")]
    assert len(accuracies) > 2
    assert len(set(accuracies)) == len(accuracies)


def test_what_is_complete_is_written_though_cells_failed(
    config: ExperimentConfig, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An experiment whose run ends with failed cells writes its results, and then tells the failure."""
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    shutil.rmtree(copy / "methods" / "swat.max_steps-10" / "seed-1")
    (copy / "comparison.json").write_text("{}")

    def failing_run(*_: object) -> None:
        raise RunError("methods/swat.max_steps-10/seed-1 failed: disk full")

    monkeypatch.setattr(experimenting, "run", failing_run)
    with pytest.raises(RunError, match="disk full"):
        experimenting.experiment(config, copy)
    written = read_artifact(copy / "experiment.json", Experiment)
    assert written == summarize_experiment(config, copy)
    assert (copy / "experiment.md").read_text() == experiment_page(written)
    assert (copy / "frontier.svg").stat().st_size > 1000
    comparison = written.matched[0].comparison
    assert comparison is not None
    sources = [source.path for listed in comparison.sources.values() for source in listed]
    assert all(path.startswith("methods/") for path in sources)


def test_data_sets_are_done_one_after_the_other(
    config: ExperimentConfig, found: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each data set has its folder and its page; one that fails keeps no other from being done."""
    began: list[tuple[str, Path | None]] = []

    def fake_run(_: object, out: Path, observer: object, like: Path | None) -> None:
        began.append((out.name, like))
        if out.name != "empty":
            out.mkdir()
            (out / "comparison.json").write_text("{}")
        if out.name != "whole":
            raise RunError("methods/ift/seed-0 failed: disk full")

    monkeypatch.setattr(experimenting, "run", fake_run)
    monkeypatch.setattr(experimenting, "check_run", lambda *_: None)
    monkeypatch.setattr(experimenting, "summarize_experiment", lambda *_: found)
    names = ("whole", "empty", "partly")
    with pytest.raises(RunError) as caught:
        experimenting.experiments(dict.fromkeys(names, config), tmp_path)
    assert str(caught.value).splitlines() == [
        f"{name}: methods/ift/seed-0 failed: disk full" for name in ("empty", "partly")
    ]
    assert began == [("whole", None), ("empty", tmp_path / "whole"), ("partly", tmp_path / "whole")]
    page = (tmp_path / "experiment.md").read_text()
    assert "[whole](whole/experiment.md), [partly](partly/experiment.md)." in page
    heading = next(line for line in page.splitlines() if line.startswith("| method"))
    assert heading.count(": ASR") == heading.count(": task accuracy") == 2
    row = next(line for line in page.splitlines() if line.startswith("| swat |"))
    assert row.count("<br>") == 2 * len(("ASR", "over-refusal", "task accuracy"))
    assert "| ml-lr | not compared |" in page


def test_all_data_sets_are_checked_before_the_first(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in the last data set is told, with its name, before anything is begun."""
    wrong = config._replace(run=config.run.model_copy(update={"data": "gone.jsonl"}))
    monkeypatch.setattr(experimenting, "run", lambda *_: pytest.fail("began"))
    with pytest.raises(InputError, match=r"data_sets\.second: gone\.jsonl: no such data file"):
        experimenting.experiments({"first": config, "second": wrong}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_that_never_began_is_only_told(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without anything to compare the error of the run is the only result."""

    def failing_run(*_: object) -> None:
        raise RunError("the analysis failed")

    monkeypatch.setattr(experimenting, "run", failing_run)
    with pytest.raises(RunError, match="the analysis failed"):
        experimenting.experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
