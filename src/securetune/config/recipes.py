"""What a whole file may hold: the sections of `securetune run`, and those that the single stages take.

The single commands use the same section names, so that `--set training.max_steps=20` means the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from securetune.config.base import NOT_SHOWN, PositiveInt, Settings
from securetune.config.checking import merge, validate
from securetune.config.endpoint import EndpointSettings
from securetune.config.files import read_yaml
from securetune.config.settings import (
    AnalysisSettings,
    EvaluationSettings,
    ModelSettings,
    ProbeSettings,
    SearchSettings,
    TrainingSettings,
)
from securetune.errors import ConfigError

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class AnalyzeConfig(Settings):
    """Sections of `securetune analyze`; `data` and `training` are for `analysis.perturbation: update` alone."""

    model: ModelSettings = ModelSettings()
    probes: ProbeSettings = ProbeSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    data: str | None = None
    training: TrainingSettings = TrainingSettings()


class SearchConfig(Settings):
    """Sections of `securetune search`; `data` and `training` are for the perturbation `update` alone."""

    model: ModelSettings = ModelSettings()
    probes: ProbeSettings = ProbeSettings()
    search: SearchSettings = SearchSettings()
    data: str | None = None
    training: TrainingSettings = TrainingSettings()


class TrainConfig(Settings):
    """Sections of `securetune train`."""

    model: ModelSettings = ModelSettings()
    data: str
    training: TrainingSettings = TrainingSettings()


class ExportConfig(Settings):
    """Sections of `securetune export`."""

    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()


class EvaluateConfig(Settings):
    """Sections of `securetune evaluate`.

    Attributes:
        model: The model; behind an endpoint its name alone counts.
        evaluation: Suites, judges, task.
        backend: What generates the answers: `transformers`, in this process, or `vllm`, where that is installed: faster
            on a GPU, and with other roundings.
        endpoint: Server that answers instead; None: the model is loaded here.
    """

    model: ModelSettings = ModelSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    backend: Literal["transformers", "vllm"] = "transformers"
    endpoint: EndpointSettings | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> EvaluateConfig:
        if self.evaluation.utility is not None and (self.endpoint is not None or self.backend != "transformers"):
            raise PydanticCustomError(
                NOT_SHOWN,
                "evaluation.utility: lm-eval is run on a model loaded by transformers alone. Leave --utility, or "
                "--endpoint and --backend, out; lm-eval itself asks servers and vLLM.",
            )
        if self.endpoint is None:
            return self
        unused = {
            "backend: is the server's own with an endpoint. Leave --backend out.": self.backend != "transformers",
            "evaluation.batch_size: does nothing with an endpoint. Give endpoint.concurrency.": (
                self.evaluation.batch_size != "auto"
            ),
            "model: settings other than the name do nothing with an endpoint. Leave them out.": (
                self.model != ModelSettings(name=self.model.name)
            ),
        }
        for sentence in (sentence for sentence, is_given in unused.items() if is_given):
            raise PydanticCustomError(NOT_SHOWN, sentence)  # the value would be the whole of the sections
        return self


class JudgeConfig(Settings):
    """Sections of `securetune judge`.

    Attributes:
        evaluation: Settings of judges that differ from those of the evaluation, together with which they are checked.
    """

    evaluation: dict[str, Any] = Field(default={})


class RunConfig(Settings):
    """`securetune run CONFIG.yaml`: one file for analyze → search → train → evaluate → report.

    Attributes:
        model: The aligned start model.
        data: Training data: a file of conversations (JSON lines, JSON, CSV, TSV or Parquet), a data set
            (`hub:owner/name[@revision][#configuration][:split]`, or `folder:path` with the same endings), or
            `tiny-world` for the embedded downstream data.
        probes: Prompts of analysis and search.
        analysis: Robustness sweep.
        search: Search for the robust set.
        training: Settings shared by all methods.
        methods: Label → settings that differ from `training`. `method` defaults to the label, so that
            `swat-sensitive: {method: swat, modules: sensitive}` is a control beside `swat: {}`. A label names a folder.
        evaluation: Suites, judges, task.
        selection: A second evaluation of every tuned model, on other prompts, by which `securetune experiment` chooses
            among settings; None: there is none.
        seeds: Training seeds, all different; each method runs once a seed.
        workers: Processes that train and evaluate side by side, each with one thread on a CPU. None: one a core on a
            CPU for small models, 1 on a GPU. It does not change any result.
    """

    model: ModelSettings = ModelSettings()
    data: str
    probes: ProbeSettings = ProbeSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    search: SearchSettings = SearchSettings()
    training: TrainingSettings = TrainingSettings()
    methods: dict[str, dict[str, Any]] = Field(default={"ift": {}, "ml-lr": {}, "swat": {}}, min_length=1)
    evaluation: EvaluationSettings = EvaluationSettings()
    selection: EvaluationSettings | None = None
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    workers: PositiveInt | None = None

    @field_validator("methods", mode="before")
    @classmethod
    def _empty_means_no_difference(cls, methods: Any) -> Any:
        """Let `ift:` with nothing after it, which YAML reads as null, mean `ift: {}`."""
        if not isinstance(methods, Mapping):
            return methods
        return {label: {} if changes is None else changes for label, changes in methods.items()}

    @field_validator("methods")
    @classmethod
    def _labels_name_folders(cls, methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not all(_LABEL.fullmatch(label) and label != "start" for label in methods):
            raise ValueError("must have labels of letters, digits, '.', '_' and '-', none of them called start")
        return methods

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must all be different")
        return seeds

    def training_for(self, label: str, seed: int) -> TrainingSettings:
        """Return the resolved training settings of one method and seed.

        Raises:
            ConfigError: If the label's settings are unknown or out of range.
        """
        changes = {"method": label, **self.methods[label], "seed": seed}
        merged = merge(self.training.model_dump(mode="json"), changes)
        return validate(TrainingSettings, merged, at=f"methods.{label}")


def load_run_config(path: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read and check a run's YAML; relative file names in it count from the current folder.

    Args:
        path: The YAML file.
        overrides: Values that win over the file, as a nested mapping.

    Raises:
        ConfigError: With every mistake found, including those in each method's settings.
    """
    return check_run_config(merge(read_yaml(path), overrides or {}), where=str(path))


def check_run_config(content: Mapping[str, Any], where: str = "") -> RunConfig:
    """Check a plain mapping as a run's configuration, methods included.

    Raises:
        ConfigError: With every mistake found.
    """
    problems: list[str] = []
    config: RunConfig | None = None
    try:
        config = validate(RunConfig, content, where)
    except ConfigError as error:
        problems += error.problems
    problems += _method_problems(content, where)
    if config is None or problems:
        raise ConfigError(problems)
    return config


def _method_problems(content: Mapping[str, Any], where: str) -> list[str]:
    """Check each label's settings by themselves, so that they are reported beside mistakes elsewhere in the file."""
    methods = content.get("methods")
    problems: list[str] = []
    for label, changes in methods.items() if isinstance(methods, Mapping) else ():
        if isinstance(changes, Mapping):
            try:
                validate(TrainingSettings, dict(changes), where, at=f"methods.{label}")
            except ConfigError as error:
                problems += error.problems
    return problems


def load_train_config(
    path: Path | None,
    overrides: Mapping[str, Any],
    method: str | None = None,
    model: str | None = None,
    data: str | None = None,
    modules: str | None = None,
) -> TrainConfig:
    """Resolve the settings of one training run from a recipe and flags; flags win.

    Args:
        path: YAML with `model`, `data` and `training`, or a whole run's recipe, or None if the flags say enough.
        overrides: Values that win over the file, as a nested mapping.
        method: Method; in a run's recipe, also a label of its `methods`. Not needed if there is only one.
        model: Start model.
        data: Training data.
        modules: Manifest of the robust modules.

    Raises:
        ConfigError: With every mistake found; if a recipe has several methods and none is chosen.
    """
    content = merge(merge(read_yaml(path) if path else {}, overrides), _as_sections(model, data))
    where = str(path) if path else ""
    if set(content) - set(TrainConfig.model_fields):
        run = check_run_config(content, where)
        label = method or _only_method(run, where)
        training = run.training_for(label, run.seeds[0]) if label in run.methods else run.training
        content = {"model": run.model, "data": run.data, "training": training.model_dump(mode="json")}
        method = None if label in run.methods else label
    changes = {"method": method, "modules": modules}
    content = merge(content, {"training": {key: value for key, value in changes.items() if value is not None}})
    return validate(TrainConfig, content, where)


def load_plan_config(
    path: Path | None,
    overrides: Mapping[str, Any],
    method: str | None = None,
    model: str | None = None,
    data: str | None = None,
    modules: str | None = None,
) -> RunConfig | TrainConfig:
    """Resolve what is to be planned: a whole run of a recipe, or one training of it.

    Args:
        path: A recipe, or None if the flags say enough.
        overrides: Values that win over the file, as a nested mapping.
        method: One method, as `load_train_config` takes it; with a recipe alone, all of its methods are planned.
        model: Start model.
        data: Training data.
        modules: Manifest of the robust modules; it belongs to one training.

    Raises:
        ConfigError: With every mistake found.
    """
    if path is None or method or modules:
        return load_train_config(path, overrides, method, model, data, modules)
    return load_run_config(path, merge(overrides, _as_sections(model, data)))


def _as_sections(model: str | None, data: str | None) -> dict[str, Any]:
    return {**({"model": {"name": model}} if model else {}), **({"data": data} if data else {})}


def _only_method(run: RunConfig, where: str) -> str:
    if len(run.methods) == 1:
        return next(iter(run.methods))
    prefix = f"{where}: " if where else ""
    raise ConfigError(f"{prefix}holds several methods. Give --method: {', '.join(run.methods)}")
