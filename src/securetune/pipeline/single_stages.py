"""The stages one by one, as the commands `analyze`, `search`, `train` and `evaluate` run them: checks, then the stage.

A stage whose result is there already, made from the same model, prompts and settings, gives that result; a script that
was interrupted can simply be started again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from securetune import models
from securetune.analysis import analyze_robustness
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
from securetune.config import AnalyzeConfig, EvaluateConfig, SearchConfig, TrainConfig
from securetune.data.prompts import ProbeSet, load_probes
from securetune.errors import ArtifactError, ConfigError, InputError, ProblemList
from securetune.evaluation import check_evaluation, evaluate
from securetune.pipeline.jobs import count_decided, write_trace
from securetune.progress import ProgressCallback
from securetune.reporting import heatmap_svg
from securetune.search import search_robust_modules
from securetune.training import train

ArtifactType = TypeVar("ArtifactType", bound=Artifact)


def analyze_model(config: AnalyzeConfig, out: Path, progress: ProgressCallback) -> RobustnessReport:
    """Check, analyze, and write the report to `out`, with the heatmap beside it.

    Raises:
        InputError: If the model or the prompts cannot be used, or `out` holds something else.
    """
    probes, found = _check_probed_stage(config, out, RobustnessReport)
    model = models.load(config.model)
    settings = config.analysis.model_dump(mode="json")
    if found is not None:
        _require_same(found.settings == settings and found.prompt_set_hash == probes.hash, out)
        models.check_same_model(found.model, model.identity, str(out))
        return found
    report = analyze_robustness(model, probes, config.analysis, progress)
    write_text(out.with_name("heatmap.svg"), heatmap_svg(report, chosen=()))
    write_json(out, report)
    return report


def search_model(config: SearchConfig, robustness: Path, out: Path, progress: ProgressCallback) -> RobustModules:
    """Check, search, and write the manifest to `out`, with `search_trace.jsonl` beside it.

    Args:
        config: Model, prompts and search settings.
        robustness: Result of the analysis.
        out: The manifest.
        progress: Is told of the modules that are decided.

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
        _require_same(_has_settings(found, config) and found.prompt_set_hash == probes.hash, out)
        models.check_same_model(found.model, model.identity, str(out))
        return found
    result = search_robust_modules(model, probes, report, config.search, count_decided(report, progress))
    write_trace(out.with_name("search_trace.jsonl"), result)
    write_json(out, result.manifest)
    return result.manifest


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
    """
    problems = ProblemList()
    problems.found += models.check_model(config.model)
    with problems.collect():
        check_evaluation(config.evaluation, config.model)
    problems.raise_if_any(InputError)
    return evaluate(models.load(config.model), out, config.evaluation, progress)


def _check_probed_stage(
    config: AnalyzeConfig | SearchConfig, out: Path, kind: type[ArtifactType]
) -> tuple[ProbeSet, ArtifactType | None]:
    """Check model, prompts and output file together; return the prompts, and the result if `out` holds one."""
    problems = ProblemList()
    problems.found += models.check_model(config.model)
    probes: ProbeSet | None = None
    with problems.collect():
        probes = load_probes(config.probes, config.model.name)
    found: ArtifactType | None = None
    with problems.collect():
        found = read_artifact(out, kind) if out.exists() else None
    problems.raise_if_any(InputError)
    assert probes is not None
    return probes, found


def _require_same(same: bool, out: Path) -> None:
    if not same:
        raise ConfigError(f"{out}: holds a result with other settings or prompts. Give another --out, or remove it.")


def _has_settings(found: RobustModules, config: SearchConfig) -> bool:
    """Compare search settings; in a manifest the noise size is resolved, with the rule that gave it beside it."""
    wanted = config.search.model_dump(mode="json", exclude={"epsilon"} if config.search.epsilon is None else None)
    was_resolved = "epsilon_rule" in found.settings
    return {**found.settings, **wanted} == found.settings and was_resolved == (config.search.epsilon is None)
