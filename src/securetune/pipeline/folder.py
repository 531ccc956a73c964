"""The run folder: where each file lies, whose run it is, and how far that run has come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from securetune.artifacts import (
    RunRecord,
    StageRecord,
    environment,
    read_artifact,
    sha256_files,
    sha256_json,
    write_json,
)
from securetune.config import OWN_SEARCH, RunConfig, read_yaml, write_yaml
from securetune.data.conversations import training_sources
from securetune.errors import ConfigError
from securetune.models import list_models

_SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files.

    Attributes:
        path: The folder itself.
    """

    path: Path

    @property
    def record(self) -> Path:
        """How far the run is."""
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def robustness(self) -> Path:
        """Result of the analysis."""
        return self.path / "analysis" / "robustness.json"

    @property
    def heatmap(self) -> Path:
        """The analysis as a picture."""
        return self.path / "analysis" / "heatmap.svg"

    def search_trace(self, variant: str = "") -> Path:
        """Every step of a search; `variant` as `search_variant` returns it."""
        return self.path / "search" / variant / "search_trace.jsonl"

    @property
    def start(self) -> Path:
        """Evaluation of the start model."""
        return self.path / "start"

    @property
    def start_scores(self) -> Path:
        """Scores of the start model."""
        return self.start / "scores.json"

    @property
    def report(self) -> Path:
        """The report for people."""
        return self.path / "report.html"

    @property
    def comparison(self) -> Path:
        """The report for programs."""
        return self.path / "comparison.json"

    @property
    def logs(self) -> Path:
        """What the worker processes printed."""
        return self.path / "logs"

    @property
    def update(self) -> Path:
        """Short fine-tuning runs, if modules are perturbed by their updates."""
        return self.path / "analysis" / "update"

    @property
    def partial_analysis(self) -> Path:
        """What an analysis under way has finished."""
        return self.path / "analysis" / "partial"

    def manifest(self, selection: str, variant: str = "") -> Path:
        """Chosen modules: `searched`, or a control set of the same size, such as `sensitive`."""
        name = "robust" if selection == "searched" else selection
        return self.path / "search" / variant / f"{name}_modules.json"

    def prepared_data(self, name: str) -> Path:
        """Training data that defenses have prepared; all methods with the same defenses share them."""
        return self.path / "data" / name

    def cell(self, label: str, seed: int) -> Path:
        """One method with one seed: its model, its training log, its evaluation."""
        return self.path / "methods" / label / f"seed-{seed}"

    def cell_selection(self, label: str, seed: int) -> Path:
        """Evaluation of one method with one seed on the prompts by which settings are chosen."""
        return self.cell(label, seed) / "selection"

    def cell_scores(self, label: str, seed: int) -> Path:
        """Scores of one method with one seed."""
        return self.cell(label, seed) / "evaluation" / "scores.json"


def cell_name(label: str, seed: int) -> str:
    """Return the stage name of a cell, which is also its path in the run folder."""
    return f"methods/{label}/seed-{seed}"


def search_variant(config: RunConfig, label: str) -> str:
    """Return the folder, under `search/`, of the search for a method's modules: empty for the section's own settings.

    Methods with the same settings of the search share it.
    """
    settings = config.search_for(label)
    return "" if settings == config.search else sha256_json(settings.model_dump(mode="json"))[:8]


def resolved_config(config: RunConfig) -> dict[str, Any]:
    """Return everything that decides a run's result, defaults filled in; `workers` does not."""
    resolved = config.model_dump(mode="json", exclude={"workers"})
    resolved["methods"] = {label: _differences_from_shared(config, label) for label in config.methods}
    return resolved


def _differences_from_shared(config: RunConfig, label: str) -> dict[str, Any]:
    shared = config.training.model_dump(mode="json")
    own = config.training_for(label, config.training.seed).model_dump(mode="json")
    differing = {key: value for key, value in own.items() if value != shared[key] or key == "method"}
    search = config.search.model_dump(mode="json")
    own_search = config.search_for(label).model_dump(mode="json")
    searched = {key: value for key, value in own_search.items() if value != search[key]}
    return {**differing, **({OWN_SEARCH: searched} if searched else {})}


def hash_inputs(config: RunConfig) -> dict[str, str]:
    """Hash the files that a run reads; built-in data has no file, and comes with the package."""
    named = {
        **_data_inputs(config),
        "probes.harmful": config.probes.harmful,
        "probes.harmless": config.probes.harmless,
        "evaluation.task": config.evaluation.task,
        **_selection_inputs(config),
        **{f"evaluation.suites.{i}": suite for i, suite in enumerate(config.evaluation.suites)},
        **{f"methods.{label}.modules": config.training_for(label, 0).modules for label in config.methods},
    }
    hashes = {}
    for key, name in named.items():
        path = _as_file(name)
        if path is not None:
            hashes[key] = sha256_files([path])
    for name in _chained_names(config):
        if Path(name).is_dir():
            hashes[f"chain.{name}"] = _model_files_hash(Path(name))
        elif (path := _as_file(name)) is not None:
            hashes[f"chain.{name}"] = sha256_files([path])
    embedded = {model.name: model.path for model in list_models()}
    model = embedded.get(config.model.name, Path(config.model.name))
    if model.is_dir():
        hashes["model"] = _model_files_hash(model)
    return hashes


def _data_inputs(config: RunConfig) -> dict[str, str]:
    sources = training_sources(config.data)
    return {"data" if len(sources) == 1 else f"data.{place}": source for place, source in enumerate(sources)}


def _selection_inputs(config: RunConfig) -> dict[str, str | None]:
    if config.selection is None:
        return {}
    suites = {f"selection.suites.{place}": suite for place, suite in enumerate(config.selection.suites)}
    return {"selection.task": config.selection.task, **suites}


def _chained_names(config: RunConfig) -> set[str]:
    """Return what the chains' steps are given as text: models by role, files of samples, and whatever else."""
    trainings = [config.training_for(label, 0) for label in config.methods]
    steps = [step for training in trainings for step in (*training.before, *training.after)]
    texts = [value for step in steps for value in step.options.values() if isinstance(value, str)]
    return {name for text in texts for name in training_sources(text)}


def _as_file(name: str | None) -> Path | None:
    if name is None:
        return None
    paths = [Path(name), Path(name.partition(":")[2]), Path(name.partition("=")[2])]
    return next((path for path in paths if path.is_file()), None)


def _model_files_hash(folder: Path) -> str:
    """Hash small files whole and of the weights their size, which is enough to notice another model at once."""
    small = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".model", ".txt"))
    weights = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    return sha256_json([sha256_files(small), weights])


def check_folder(folder: RunFolder, config: RunConfig) -> None:
    """Refuse an output folder that holds anything but this very run.

    Raises:
        ConfigError: If it is a file, holds other files, or holds a run with another configuration or other inputs.
        ArtifactError: If its `run.json` cannot be read.
    """
    path = folder.path
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: must be a folder; got a file. Give another --out.")
    if not path.exists():
        return
    if not folder.record.exists():
        found = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        if found:
            raise ConfigError(
                f"{path}: must be a new or empty folder, or hold this run; it holds {found[0]}, no run.json"
            )
        return
    record = read_artifact(folder.record, RunRecord)
    if record.config_hash != sha256_json(resolved_config(config)):
        raise ConfigError(f"{path}: holds another run{_differences(folder, config)}. Give another --out, or remove it.")
    changed = [key for key, digest in hash_inputs(config).items() if record.input_hashes.get(key) != digest]
    if changed:
        raise ConfigError(
            f"{path}: holds a run on other files: {', '.join(changed)} changed since it began. Give another --out."
        )


def _differences(folder: RunFolder, config: RunConfig) -> str:
    try:
        before = _flat(read_yaml(folder.config))
    except ConfigError:
        return ""
    now = _flat(resolved_config(config))
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    shown = [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys[:_SHOWN_DIFFERENCES]]
    more = len(keys) - len(shown)
    return f" ({'; '.join(shown)}{f'; and {more} more' if more > 0 else ''})" if shown else ""


def _flat(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, path)
        else:
            flat[path] = value
    return flat


def open_record(folder: RunFolder, config: RunConfig, stages: list[str]) -> RunRecord:
    """Begin a run, or go on with the one that the folder holds; call `check_folder` first.

    `run.json` comes before every other file, so that a folder without it holds nothing of ours.
    """
    if folder.record.exists():
        record = read_artifact(folder.record, RunRecord)
        record.status, record.environment = "running", environment()
        for name in stages:
            stage = record.stages.setdefault(name, StageRecord())
            if stage.state != "complete":
                stage.state, stage.error = "waiting", None
    else:
        record = RunRecord(
            config_hash=sha256_json(resolved_config(config)),
            input_hashes=hash_inputs(config),
            environment=environment(),
            stages={name: StageRecord() for name in stages},
        )
    write_json(folder.record, record)
    if not folder.config.exists():
        write_yaml(folder.config, resolved_config(config))
    return record


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keep a second process out of the folder; the lock ends with the process that holds it, however it ends.

    Raises:
        ConfigError: If another process works in the folder.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{folder.path}: another process is working in it. Wait for it, or stop it.") from None
    try:
        yield
    finally:
        lock.release()
