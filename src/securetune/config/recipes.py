"""What a whole file may hold: the sections of `securetune run`, and those that the single stages take.

The single commands use the same section names, so that `--set training.max_steps=20` means the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from securetune.config.base import NOT_SHOWN, PositiveInt, Settings
from securetune.config.checking import merge, validate
from securetune.config.endpoint import EndpointSettings
from securetune.config.files import read_yaml
from securetune.config.presets import PRESETS, with_preset
from securetune.config.settings import (
    AnalysisSettings,
    EvaluationSettings,
    ModelSettings,
    ProbeSettings,
    SearchSettings,
    TrainingSettings,
)
from securetune.errors import ConfigError

OWN_SEARCH = "search"
"""Key of a method's settings that belongs to the search for its modules, and not to its training."""

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _joined(sources: Any) -> Any:
    """Write a list of sources as the one text that stands for them everywhere else."""
    is_list = isinstance(sources, list | tuple) and bool(sources) and all(isinstance(each, str) for each in sources)
    return " + ".join(sources) if is_list else sources


TrainingData = Annotated[str, BeforeValidator(_joined)]
"""A source of training data, or several."""


class AnalyzeConfig(Settings):
    """Sections of `securetune analyze`; `data` and `training` are for `analysis.perturbation: update` alone."""

    model: ModelSettings = ModelSettings()
    probes: ProbeSettings = ProbeSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    data: TrainingData | None = None
    training: TrainingSettings = TrainingSettings()


class SearchConfig(Settings):
    """Sections of `securetune search`; `data` and `training` are for the perturbation `update` alone."""

    model: ModelSettings = ModelSettings()
    probes: ProbeSettings = ProbeSettings()
    search: SearchSettings = SearchSettings()
    data: TrainingData | None = None
    training: TrainingSettings = TrainingSettings()


class TrainConfig(Settings):
    """Sections of `securetune train`."""

    model: ModelSettings = ModelSettings()
    data: TrainingData
    training: TrainingSettings = TrainingSettings()


class ProtectedTraining(Settings):
    """What `securetune protect` needs of the section `training`.

    Attributes:
        modules: Manifest, for `protect: sensitive` and `energy_by: sensitivity`; None: neither is asked for.
        method_options: Options of `protected-subspace`.
    """

    modules: str | None = None
    method_options: dict[str, Any] = Field(default={})


class ProtectConfig(Settings):
    """Sections of `securetune protect`."""

    model: ModelSettings = ModelSettings()
    training: ProtectedTraining = ProtectedTraining()


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
            `tiny-world` for the embedded downstream data. A list of these is read one after the other.
        probes: Prompts of analysis and search.
        analysis: Robustness sweep.
        search: Search for the robust set.
        training: Settings shared by all methods.
        methods: Label → settings that differ from `training`. `method` defaults to the label, so that
            `swat-sensitive: {method: swat, modules: sensitive}` is a control beside `swat: {}`. A label names a folder.
            A preset's name (`protected-mix: {}`) may stand where a method's may.
            `search`, in a method's settings, holds what differs from the section `search`: that method's modules come
            from a search of their own, as in `swat-small: {method: swat, search: {target_fraction: 0.25}}`.
            Left out: the method that `training.method` names, or without that `ift`, `ml-lr` and `swat`.
        evaluation: Suites, judges, task.
        selection: A second evaluation of every tuned model, on other prompts, by which `securetune experiment` chooses
            among settings; None: there is none.
        seeds: Training seeds, all different; each method runs once a seed.
        workers: Processes that train and evaluate side by side, each with one thread on a CPU, or a GPU of its own.
            None: one a GPU; on a CPU one a core for small models, else 1. It does not change any result.
    """

    model: ModelSettings = ModelSettings()
    data: TrainingData
    probes: ProbeSettings = ProbeSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    search: SearchSettings = SearchSettings()
    training: TrainingSettings = TrainingSettings()
    methods: dict[str, dict[str, Any]] = Field(default={"ift": {}, "ml-lr": {}, "swat": {}}, min_length=1)
    evaluation: EvaluationSettings = EvaluationSettings()
    selection: EvaluationSettings | None = None
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    workers: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_method_may_be_named(cls, content: Any) -> Any:
        """Let `training.method`, in a file without `methods`, be the one method of the run.

        A preset beside `methods` is refused: its defenses would be shared by all of them, plain fine-tuning included.
        """
        training = content.get("training") if isinstance(content, Mapping) else None
        named = training.get("method") if isinstance(training, Mapping) else None
        if isinstance(named, str) and named in PRESETS and "methods" in content:
            raise PydanticCustomError(
                NOT_SHOWN, f'training.method: "{named}" is a preset, which belongs in methods, as `{named}: {{}}`'
            )
        return {**content, "methods": {named: {}}} if isinstance(named, str) and "methods" not in content else content

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
        own = {key: value for key, value in self.methods[label].items() if key != OWN_SEARCH}
        shared = self.training.model_dump(mode="json")
        merged = merge(shared, with_preset({"method": label, **own, "seed": seed}, shared))
        return validate(TrainingSettings, merged, at=f"methods.{label}")

    def search_for(self, label: str) -> SearchSettings:
        """Return the settings of the search that finds one method's modules.

        Raises:
            ConfigError: If the label's settings of the search are unknown or out of range.
        """
        own = self.methods[label].get(OWN_SEARCH) or {}
        merged = merge(self.search.model_dump(mode="json"), own) if isinstance(own, Mapping) else own
        return validate(SearchSettings, merged, at=f"methods.{label}.{OWN_SEARCH}")


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
            own = {key: value for key, value in changes.items() if key != OWN_SEARCH}
            problems += _problems(TrainingSettings, own, where, f"methods.{label}")
            problems += _problems(SearchSettings, changes.get(OWN_SEARCH, {}), where, f"methods.{label}.{OWN_SEARCH}")
    return problems


def _problems(kind: type[Settings], content: Any, where: str, at: str) -> list[str]:
    try:
        validate(kind, content, where, at=at)
    except ConfigError as error:
        return error.problems
    return []


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
        method: Method or preset; in a run's recipe, also a label of its `methods`. Not needed if there is only one.
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
    given = {key: value for key, value in {"method": method, "modules": modules}.items() if value is not None}
    shared = content.get("training", {})
    if isinstance(shared, Mapping):  # what is none is told as a mistake below
        content = merge(content, {"training": with_preset(given, shared)})
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
