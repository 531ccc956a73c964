"""What a run takes over from another one: an analysis, searches and answers that would come out the same.

An experiment on several data sets has one run for each. The analysis and the searches look at the model and the probe
prompts alone, and the start model answers the same suites: they are done by the first run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from securetune.artifacts import RunRecord, Scores, read_artifact, responses_path
from securetune.config import EvaluationSettings, RunConfig, load_run_config
from securetune.pipeline.folder import RunFolder
from securetune.pipeline.jobs import ANALYSIS, SEARCH, START, Job

_SAME_INPUTS = ("model", "probes.harmful", "probes.harmless")


def take_over(folder: RunFolder, other: RunFolder, config: RunConfig, record: RunRecord, jobs: list[Job]) -> None:
    """Copy from another run what this one would do in the same way, and mark it as done.

    Nothing is taken from a run on another model, on other probes, or whose analysis follows its training data
    (`perturbation: update`); a stage that this run has already is left as it is.

    Args:
        folder: Of this run.
        other: Of the other one; it may be unfinished, or not there.
        config: This run's configuration.
        record: How far this run is; changed, not written.
        jobs: This run's.
    """
    if not (other.record.exists() and other.config.exists()):
        return
    theirs, done = load_run_config(other.config), read_artifact(other.record, RunRecord)
    if any(record.input_hashes.get(key) != done.input_hashes.get(key) for key in _SAME_INPUTS):
        return
    if _analysis_sections(config) == _analysis_sections(theirs) and not _follows_data(config):
        _take_analysis(folder, other, record, done, jobs)
    if record.stages[START].state != "complete" and _same_suites(config.evaluation, theirs.evaluation):
        _take_answers(folder.start, other.start)


def _analysis_sections(config: RunConfig) -> tuple[object, ...]:
    return config.model, config.probes, config.analysis, config.search


def _follows_data(config: RunConfig) -> bool:
    searches = [config.search, *(config.search_for(label) for label in config.methods)]
    return "update" in {config.analysis.perturbation, *(settings.perturbation for settings in searches)}


def _take_analysis(folder: RunFolder, other: RunFolder, record: RunRecord, done: RunRecord, jobs: list[Job]) -> None:
    for job in jobs:
        stage, theirs = record.stages[job.name], done.stages.get(job.name)
        source = other.path / job.marker.relative_to(folder.path)
        if job.kind not in (ANALYSIS, SEARCH) or stage.state == "complete":
            continue
        if theirs is None or theirs.state != "complete" or not source.exists():
            continue
        _copy_files(source.parent, job.marker.parent)
        stage.state = "complete"


def _copy_files(source: Path, target: Path) -> None:
    """Copy what one stage wrote, without the folders below it, which are other stages' or were of use to it alone."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def _same_suites(ours: EvaluationSettings, theirs: EvaluationSettings) -> bool:
    """Ask whether two evaluations differ in nothing but the task."""
    others = {"task": None, "utility": None}
    return ours.model_copy(update=others) == theirs.model_copy(update=others)


def _take_answers(folder: Path, other: Path) -> None:
    """Copy the answers to the suites; they are held against the model and the prompts when they are used."""
    scores = other / "scores.json"
    if folder.exists() or not scores.exists():
        return
    for suite in read_artifact(scores, Scores).suites:
        source = responses_path(other, suite.name).parent
        shutil.copytree(source, folder / source.name)
