"""What the worker processes do.

Each function is one stage of a run: it reads its inputs from the run folder, writes its results there, and goes on
where a killed one stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securetune import models
from securetune.analysis import analyze_robustness, remove_partial_results
from securetune.artifacts import (
    RobustModules,
    RobustnessReport,
    read_artifact,
    write_json,
    write_text,
)
from securetune.config import MODULE_SETS, EvaluationSettings, RunConfig, SearchSettings, TrainingSettings
from securetune.data.conversations import read_training_data
from securetune.data.prepared import RECORD_FILE, PreparedData, read_prepared
from securetune.data.prompts import ProbeSet, load_probes
from securetune.defenses import defense_of
from securetune.evaluation import evaluate, require_refusing_start_model
from securetune.features import Perturbation, fit_probe
from securetune.models import ChatModel
from securetune.pipeline.chaining import apply_chain, check_chain, without_chain
from securetune.pipeline.folder import RunFolder, cell_name, search_variant
from securetune.pipeline.kept_directions import borrow_directions
from securetune.pipeline.perturbing import open_perturbation
from securetune.pipeline.preparing import apply_before, data_folder_name
from securetune.progress import ProgressCallback
from securetune.search import CONTROL_KINDS, JointTest, SearchResult, control_set, search_robust_modules
from securetune.training import RESULT_FILE
from securetune.training import train as train_alone

START, ANALYSIS, SEARCH, REPORT = "start", "analysis", "search", "report"


@dataclass(frozen=True)
class Job:
    """One piece of a run that a worker does.

    Attributes:
        name: Stage name in `run.json`.
        kind: `start`, `analysis`, `search`, `data` or `cell`.
        marker: File whose existence means that the job's results are complete.
        needs: Jobs that must be complete before.
        cell: Method label and seed, of a cell.
        variant: Of a search: which, as `search_variant` says.
        label: For data: a method whose defenses prepare them.
    """

    name: str
    kind: str
    marker: Path
    needs: tuple[str, ...] = ()
    cell: tuple[str, int] | None = None
    variant: str = ""
    label: str | None = None

    @property
    def is_isolated(self) -> bool:
        """Whether a run goes on without it if it fails."""
        return self.kind in ("cell", "data")


def list_jobs(config: RunConfig, folder: RunFolder) -> list[Job]:
    """Return a run's jobs in the order in which they should begin.

    The start model comes first, because the run is pointless if it does not refuse; then the data that defenses
    prepare, once for all seeds; then one seed of every method before the next seed, so that an unfinished run can be
    compared already.
    """
    jobs = [
        Job(START, START, folder.start_scores),
        Job(ANALYSIS, ANALYSIS, folder.robustness),
        *(_search_job(variant, folder) for variant in _searches(config)),
    ]
    jobs += _data_jobs(config, folder)
    for seed in config.seeds:
        for label in config.methods:
            settings = config.training_for(label, seed)
            needs = (_search_name(search_variant(config, label)),) * needs_search(settings)
            needs += tuple(_data_job_name(settings) for _ in settings.before[:1])
            if (trained_by := training_label(config, label)) != label:
                needs = (cell_name(trained_by, seed),)
            jobs.append(Job(cell_name(label, seed), "cell", folder.cell_scores(label, seed), needs, (label, seed)))
    return jobs


def _data_jobs(config: RunConfig, folder: RunFolder) -> list[Job]:
    found: dict[str, Job] = {}
    for label in config.methods:
        settings = config.training_for(label, config.seeds[0])
        if settings.before:
            name = _data_job_name(settings)
            marker = _data_folder(settings, folder) / RECORD_FILE
            found.setdefault(name, Job(name, "data", marker, label=label))
    return list(found.values())


def _data_job_name(settings: TrainingSettings) -> str:
    return f"data/{data_folder_name(settings.before)}"


def _data_folder(settings: TrainingSettings, folder: RunFolder) -> Path:
    return folder.prepared_data(data_folder_name(settings.before))


def _searches(config: RunConfig) -> list[str]:
    """Return the searches of a run: the section's own, which the report shows, and those of single methods."""
    return list(dict.fromkeys(["", *(search_variant(config, label) for label in config.methods)]))


def _search_name(variant: str) -> str:
    return f"{SEARCH}-{variant}" if variant else SEARCH


def _search_job(variant: str, folder: RunFolder) -> Job:
    marker = folder.manifest("searched", variant)
    return Job(_search_name(variant), SEARCH, marker, needs=(ANALYSIS,), variant=variant)


def needs_search(settings: TrainingSettings) -> bool:
    """Whether a method waits for the search: plain fine-tuning does not, nor one with a manifest of the user's."""
    return needs_manifest(settings) and settings.modules in MODULE_SETS


def training_label(config: RunConfig, label: str) -> str:
    """Return the label whose training a label takes over: the first that differs in what follows it alone, or itself.

    One that has a chain itself is taken over too; its training lies beside its chain.
    """
    wanted = _training_of(config, label)
    return next(other for other in config.methods if _training_of(config, other) == wanted)


def _training_of(config: RunConfig, label: str) -> tuple[TrainingSettings, str]:
    """Return what decides a method's training: its settings without the chain, and the search for its modules."""
    settings = without_chain(config.training_for(label, config.training.seed))
    return settings, search_variant(config, label) if needs_search(settings) else ""


def needs_manifest(settings: TrainingSettings) -> bool:
    """Whether a method treats robust modules differently from others."""
    return defense_of(settings).needs_manifest


def do(job: Job, config: RunConfig, folder: RunFolder, progress: ProgressCallback) -> None:
    """Do a job; importable, so that a worker process can be sent here."""
    if job.kind == START:
        evaluate_start_model(config, folder, progress)
    elif job.kind == ANALYSIS:
        analyze(config, folder, progress)
    elif job.kind == SEARCH:
        search(config, folder, progress, job.variant)
    elif job.label is not None:
        prepare(config, folder, job.label, progress)
    else:
        assert job.cell is not None
        train_and_evaluate(config, folder, *job.cell, progress)


def evaluate_start_model(config: RunConfig, folder: RunFolder, progress: ProgressCallback) -> None:
    """Evaluate the untouched model.

    Raises:
        StartModelError: If it does not refuse.
    """
    scores = evaluate(models.load(config.model), folder.start, config.evaluation, progress)
    require_refusing_start_model(scores, config.evaluation)


def analyze(config: RunConfig, folder: RunFolder, progress: ProgressCallback) -> None:
    """Score every module's robustness."""
    probes = load_probes(config.probes, config.model.name)
    model = models.load(config.model)
    perturbation = _perturbation(config.analysis.perturbation, model, probes, config, folder, progress)
    partial = folder.partial_analysis
    report = analyze_robustness(model, probes, config.analysis, progress, perturbation, partial)
    write_json(folder.robustness, report)
    remove_partial_results(partial)


def _perturbation(
    name: str, model: ChatModel, probes: ProbeSet, config: RunConfig, folder: RunFolder, progress: ProgressCallback
) -> Perturbation:
    training = config.training
    return open_perturbation(name, model, probes, config.analysis, training, config.data, folder.update, progress)


def search(config: RunConfig, folder: RunFolder, progress: ProgressCallback, variant: str = "") -> None:
    """Find the robust modules, and make the control sets; the manifest comes last, as it marks the job as complete."""
    settings = _search_settings(config, variant)
    report = read_artifact(folder.robustness, RobustnessReport)
    model = models.load(config.model)
    models.check_same_model(report.model, model.identity, str(folder.robustness))
    probes = load_probes(config.probes, config.model.name)
    name = settings.perturbation or config.analysis.perturbation
    perturbation = _perturbation(name, model, probes, config, folder, progress)
    on_step = count_decided(report, progress)
    result = search_robust_modules(model, probes, report, settings, on_step, perturbation)
    write_trace(folder.search_trace(variant), result)
    probe = fit_probe(model, probes, settings.batch_size)
    test = JointTest(model, probes.score_harmful, probe.classifier, settings, perturbation)
    for kind in CONTROL_KINDS:
        write_json(folder.manifest(kind, variant), control_set(report, result.manifest, kind, settings.seed, test))
    write_json(folder.manifest("searched", variant), result.manifest)


def _search_settings(config: RunConfig, variant: str) -> SearchSettings:
    """Return the settings of the search of that variant."""
    asked = (config.search_for(label) for label in config.methods if search_variant(config, label) == variant)
    return next(asked) if variant else config.search


def prepare(config: RunConfig, folder: RunFolder, label: str, progress: ProgressCallback) -> None:
    """Apply a method's defenses on the data."""
    settings = config.training_for(label, config.seeds[0])
    data = read_training_data(config.data)
    apply_before(
        settings.before, config.model, data.conversations, data.shapes, _data_folder(settings, folder), progress
    )


def _training_data(config: RunConfig, settings: TrainingSettings, folder: RunFolder) -> str | PreparedData:
    if not settings.before:
        return config.data
    return read_prepared(_data_folder(settings, folder))


def train_and_evaluate(config: RunConfig, folder: RunFolder, label: str, seed: int, progress: ProgressCallback) -> None:
    """Fine-tune with one method and seed, apply its chain, and evaluate the result."""
    cell = folder.cell(label, seed)
    settings = config.training_for(label, seed)
    trained = folder.cell(training_label(config, label), seed)
    if trained == cell:
        manifest = _manifest(settings, folder, search_variant(config, label))
        data = _training_data(config, settings, folder)
        borrow_directions(cell, lenders(config, folder, label))
        train_alone(without_chain(settings), config.model, data, cell, manifest, progress)
    else:
        write_text(cell / RESULT_FILE, (trained / RESULT_FILE).read_text(encoding="utf-8"))
    final = apply_chain(check_chain(settings, config.model), trained, cell, progress)
    tuned = config.model.model_copy(update={"name": str(final), "revision": None})
    chat = models.load(tuned)
    if config.selection is not None:
        evaluate(chat, folder.cell_selection(label, seed), _shown(config.selection, settings, config), progress)
    evaluate(chat, folder.cell_scores(label, seed).parent, _shown(config.evaluation, settings, config), progress)


def lenders(config: RunConfig, folder: RunFolder, label: str) -> list[Path]:
    """Return the cells, of all seeds, whose method looks at the start model in the same way."""
    wanted = _looks_at(config, label)
    labels = [other for other in config.methods if _looks_at(config, other) == wanted]
    return [folder.cell(other, seed) for seed in config.seeds for other in labels]


def _looks_at(config: RunConfig, label: str) -> tuple[object, ...]:
    settings, variant = _training_of(config, label)
    return settings.method, settings.method_options, settings.modules, settings.tune, settings.lora, variant


def _shown(evaluation: EvaluationSettings, settings: TrainingSettings, config: RunConfig) -> EvaluationSettings:
    """Return the evaluation of a tuned model, with the method's defenses at generation, or else those of all models."""
    for_all = config.evaluation.generation if evaluation.generation is None else evaluation.generation
    return evaluation.model_copy(update={"generation": settings.generation or for_all or ()})


def _manifest(settings: TrainingSettings, folder: RunFolder, variant: str) -> RobustModules | None:
    if not needs_manifest(settings):
        return None
    path = folder.manifest(settings.modules, variant) if needs_search(settings) else Path(settings.modules)
    return read_artifact(path, RobustModules)


def count_decided(report: RobustnessReport, progress: ProgressCallback) -> Callable[[dict[str, Any]], None]:
    """Return what the search calls at each step, to tell how many modules are decided."""
    decided = 0

    def on_step(step: dict[str, Any]) -> None:
        nonlocal decided
        if step["decision"] != "halved":
            decided += len(step["candidates"])
        progress("modules decided", decided, len(report.modules))

    return on_step


def write_trace(path: Path, result: SearchResult) -> None:
    """Write every step of a search, as JSON lines."""
    rows = (json.dumps(step, ensure_ascii=False) for step in result.trace)
    write_text(path, "".join(f"{row}\n" for row in rows))
