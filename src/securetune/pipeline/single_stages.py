"""The stages one by one, as the commands `analyze`, `search`, `train` and `evaluate` run them: checks, then the stage.

A stage whose result is there already, made from the same model, prompts and settings, gives that result; a script that
was interrupted can simply be started again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch

from securetune import models
from securetune.analysis import analyze_robustness, remove_partial_results
from securetune.artifacts import (
    Artifact,
    RobustModules,
    RobustnessReport,
    Scores,
    TrainingResult,
    read_artifact,
    write_json,
    write_text,
)
from securetune.config import AnalysisSettings, AnalyzeConfig, EvaluateConfig, ModelSettings, SearchConfig, TrainConfig
from securetune.data.conversations import read_conversations
from securetune.data.prompts import ProbeSet, load_probes
from securetune.errors import ArtifactError, ConfigError, InputError, ProblemList
from securetune.evaluation import (
    Answerer,
    EndpointAnswerer,
    EvaluationPlan,
    ModelAnswerer,
    VllmAnswerer,
    check_evaluation,
    check_vllm,
    evaluate_answers,
)
from securetune.features import Perturbation
from securetune.pipeline.chaining import check_shown, train
from securetune.pipeline.checks import check_weights_can_be_perturbed
from securetune.pipeline.jobs import count_decided, write_trace
from securetune.pipeline.perturbing import open_perturbation
from securetune.processes import Processes, local_rank
from securetune.progress import ProgressCallback
from securetune.reporting import heatmap_svg
from securetune.search import default_order, search_robust_modules, study_search

ArtifactType = TypeVar("ArtifactType", bound=Artifact)


def analyze_model(
    config: AnalyzeConfig, out: Path, progress: ProgressCallback, processes: Processes | None = None
) -> RobustnessReport:
    """Check, analyze, and write the report to `out`, with the heatmap beside it.

    An analysis that was interrupted goes on where it stopped, and ends with the same numbers.

    Args:
        config: Model, prompts and settings.
        out: The report.
        progress: Told how far this process is.
        processes: Share the modules; the main one writes. If one fails, all do. None: this process alone.

    Raises:
        InputError: If the model or the prompts cannot be used, or `out` holds something else.
        OtherProcessError: If another process failed.
    """
    processes = processes or Processes()
    with processes.failing_together():
        report, is_new = _find_or_analyze(config, out, progress, processes)
    if is_new and processes.is_main:
        write_text(out.with_name("heatmap.svg"), heatmap_svg(report, chosen=()))
        write_json(out, report)
        remove_partial_results(partial_results_folder(out))
    return report


def _find_or_analyze(
    config: AnalyzeConfig, out: Path, progress: ProgressCallback, processes: Processes
) -> tuple[RobustnessReport, bool]:
    """Return the report, and whether it was made here or found in `out`."""
    name, folder = config.analysis.perturbation, update_folder(out)
    if processes.count > 1 and name == "update":
        raise ConfigError(
            f"analysis.perturbation: update fine-tunes first, in one process; got {processes.count} processes. "
            "Start it without torchrun."
        )
    probes, found = _check_probed_stage(config, out, RobustnessReport)
    model = models.load(_on_own_device(config.model, processes))
    if found is not None:
        _require_same(_has_analysis_settings(found, config) and found.prompt_set_hash == probes.hash, out)
        models.check_same_model(found.model, model.identity, str(out))
    if found is not None and name != "update":
        return found, False
    # For an update this also checks that the runs behind a result that is there were made with this data.
    kind = open_perturbation(name, model, probes, config.analysis, config.training, config.data, folder, progress)
    if found is not None:
        return found, False
    partial = partial_results_folder(out)
    return analyze_robustness(model, probes, config.analysis, progress, kind, partial, processes), True


def _on_own_device(model: ModelSettings, processes: Processes) -> ModelSettings:
    """Give each of several processes on a machine a GPU of its own, if there are that many."""
    if processes.count == 1 or model.device != "auto" or local_rank() >= torch.cuda.device_count():
        return model
    return model.model_copy(update={"device": f"cuda:{local_rank()}"})


def partial_results_folder(robustness: Path) -> Path:
    """Return where an analysis under way keeps what is finished."""
    return robustness.with_name(f"{robustness.stem}.partial")


def update_folder(robustness: Path) -> Path:
    """Return where the fine-tuning runs of an analysis with the perturbation `update` lie."""
    return robustness.with_name(f"{robustness.stem}.update")


def search_model(
    config: SearchConfig, robustness: Path, out: Path, progress: ProgressCallback, study: bool = False
) -> RobustModules:
    """Check, search, and write the manifest to `out`, with `search_trace.jsonl` beside it.

    Args:
        config: Model, prompts and search settings.
        robustness: Result of the analysis.
        out: The manifest.
        progress: Is told of the modules that are decided.
        study: Also search with other seeds, tolerances and targets, and write `search_study.json`.

    Raises:
        InputError: If the analysis was made for another model or other prompts, or `out` holds something else.
    """
    report = read_artifact(robustness, RobustnessReport)
    probes, found = _check_probed_stage(config, out, RobustModules)
    if report.prompt_set_hash != probes.hash:
        raise ArtifactError(f"{robustness}: was made with other prompts. Give the same --harmful and --harmless files.")
    model = models.load(config.model)
    models.check_same_model(report.model, model.identity, str(robustness))
    if found is not None:
        _require_same(_has_settings(found, config, report) and found.prompt_set_hash == probes.hash, out)
        models.check_same_model(found.model, model.identity, str(out))
        if not study:
            return found
    kind = _joint_perturbation(config, model, probes, report, update_folder(robustness), progress)
    if found is None:
        on_step = count_decided(report, progress)
        result = search_robust_modules(model, probes, report, config.search, on_step, kind)
        write_trace(out.with_name("search_trace.jsonl"), result)
        write_json(out, result.manifest)
        found = result.manifest
    if study:
        studied = study_search(model, probes, report, found, config.search, progress, kind)
        write_json(out.with_name("search_study.json"), studied)
    return found


def _joint_perturbation(
    config: SearchConfig,
    model: models.ChatModel,
    probes: ProbeSet,
    report: RobustnessReport,
    folder: Path,
    progress: ProgressCallback,
) -> Perturbation:
    """Make the perturbation of the joint test: the search's own, or that of the analysis with the same runs."""
    known = {key: value for key, value in report.settings.items() if key in AnalysisSettings.model_fields}
    analysis = AnalysisSettings(**known)
    name = config.search.perturbation or analysis.perturbation
    return open_perturbation(name, model, probes, analysis, config.training, config.data, folder, progress)


def train_model(config: TrainConfig, out: Path, progress: ProgressCallback) -> TrainingResult:
    """Check, and train into `out`; the manifest is the file that `training.modules` names.

    Raises:
        InputError: If the model, the data, the settings or the manifest cannot be used, or `out` holds something else.
    """
    return train(config.training, config.model, config.data, out, None, progress)


def evaluate_model(config: EvaluateConfig, out: Path, progress: ProgressCallback) -> Scores:
    """Check, and evaluate into `out`.

    Raises:
        InputError: If the model, a suite, a judge or the task cannot be used, or `out` holds something else.
        RunError: If a server left prompts without an answer.
    """
    problems = ProblemList()
    if config.endpoint is None:
        problems.found += models.check_model(config.model)
    if config.backend == "vllm":
        with problems.collect():
            check_vllm(config.model)
    plan: EvaluationPlan | None = None
    with problems.collect():
        plan = check_evaluation(config.evaluation, config.model)
        if config.endpoint is None and not problems.found:
            check_shown(plan.generation, config.model, "evaluation.generation")
    problems.raise_if_any(InputError)
    assert plan is not None
    return evaluate_answers(_answerer(config), out, plan, progress)


def _answerer(config: EvaluateConfig) -> Answerer:
    if config.endpoint is not None:
        return EndpointAnswerer(config.endpoint)
    if config.backend == "vllm":
        return VllmAnswerer(config.model)
    return ModelAnswerer(models.load(config.model), config.evaluation.batch_size)


def _check_probed_stage(
    config: AnalyzeConfig | SearchConfig, out: Path, kind: type[ArtifactType]
) -> tuple[ProbeSet, ArtifactType | None]:
    """Check model, prompts and output file together; return the prompts, and the result if `out` holds one."""
    problems = ProblemList()
    model_problems = models.check_model(config.model)
    problems.found += model_problems
    if not model_problems:
        with problems.collect():
            check_weights_can_be_perturbed(config.model)
    if isinstance(config, AnalyzeConfig):
        problems.found += _update_problems(config.analysis.perturbation, config.data)
    elif config.search.perturbation is not None:
        problems.found += _update_problems(config.search.perturbation, config.data)
    probes: ProbeSet | None = None
    with problems.collect():
        probes = load_probes(config.probes, config.model.name)
    found: ArtifactType | None = None
    with problems.collect():
        found = read_artifact(out, kind) if out.exists() else None
    problems.raise_if_any(InputError)
    assert probes is not None
    return probes, found


def _update_problems(perturbation: str, data: str | None) -> list[str]:
    """Refuse an update perturbation without data, and data that it cannot be made of."""
    if perturbation != "update":
        return []
    if data is None:
        return ["perturbation: update needs the data that you want to tune on. Give --data FILE."]
    problems = ProblemList()
    with problems.collect():
        read_conversations(data)
    return problems.found


def _require_same(same: bool, out: Path) -> None:
    if not same:
        raise ConfigError(f"{out}: holds a result with other settings or prompts. Give another --out, or remove it.")


def _has_analysis_settings(found: RobustnessReport, config: AnalyzeConfig) -> bool:
    """Compare analysis settings; what calibration found is beside them in the report."""
    return {**found.settings, **config.analysis.model_dump(mode="json")} == found.settings


def _has_settings(found: RobustModules, config: SearchConfig, report: RobustnessReport) -> bool:
    """Compare search settings; in a manifest the order is resolved, and the noise size, with its rule beside it."""
    wanted = config.search.model_dump(mode="json", exclude={"epsilon"} if config.search.epsilon is None else None)
    wanted["order_by"] = config.search.order_by or default_order(report)
    was_resolved = "epsilon_rule" in found.settings
    return {**found.settings, **wanted} == found.settings and was_resolved == (config.search.epsilon is None)
