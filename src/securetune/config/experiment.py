"""An experiment: a run's sections, the hyperparameters that are tried, and how methods are matched."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from securetune.config.base import Settings
from securetune.config.chain import ChainParts
from securetune.config.checking import merge, validate
from securetune.config.files import nest, read_yaml
from securetune.config.presets import with_preset
from securetune.config.recipes import RunConfig, check_run_config
from securetune.config.settings import EvaluationSettings, Fraction
from securetune.errors import ConfigError

_SWEEP = "sweep"
_IN_A_LABEL = re.compile(r"[A-Za-z0-9._-]+")

Scalar = bool | int | float | str


class MatchingSettings(Settings):
    """How methods are made comparable when each may choose among the hyperparameters that were tried.

    Attributes:
        reference: Method with which the others are compared, and whose accuracy and loss set the targets.
        task_accuracy: Share, in [0, 1], of the best mean task accuracy of the reference (on the selection prompts)
            that a setting must reach. 0.95: a method that learned clearly less is no defense, it is less training.
        training_loss_tolerance: Largest relative distance (≥ 0) from the reference's final training loss. 0.1: the loss
            of the last batches varies by about as much from seed to seed.
    """

    reference: str = "ift"
    task_accuracy: Fraction = 0.95
    training_loss_tolerance: float = Field(default=0.1, ge=0.0)


class ExperimentSections(Settings):
    """What an experiment's file has besides the sections of a run.

    Attributes:
        sweep: Key of `training`, or of `search` with `search.` in front of it (`search.target_fraction`), → values;
            every method is tried at every combination. A method of `methods` may have a `sweep` of its own besides,
            whose keys win.
        chains: Name → defenses around the training: `before`, `after` and `generation`, as `training` takes them, or a
            list of those on the finished weights alone. Every method is tried with each of them and without, under the
            label `<method>-<name>`; they come behind those that `training` names for all. A method with a part of its
            own is left alone.
        selection: Evaluation on other prompts, by which settings are chosen. Needed if any method has several.
        matching: How methods are matched.
    """

    sweep: dict[str, tuple[Scalar, ...]] = Field(default={})
    chains: dict[str, ChainParts] = Field(default={})
    selection: EvaluationSettings | None = None
    matching: MatchingSettings = MatchingSettings()

    @field_validator("sweep")
    @classmethod
    def _has_values(cls, sweep: dict[str, tuple[Scalar, ...]]) -> dict[str, tuple[Scalar, ...]]:
        return _checked_sweep(sweep)


class Point(NamedTuple):
    """One method with one choice of hyperparameters.

    Attributes:
        label: Of the run that does it; it names a folder.
        method: Label in the experiment's `methods`.
        values: Key of `training`, or `search.` and a key of the search, → value, of what is swept.
    """

    label: str
    method: str
    values: dict[str, Scalar]


class ExperimentConfig(NamedTuple):
    """An experiment, resolved.

    Attributes:
        run: The run that does it all, with one label a point.
        points: In the order of the run's labels.
        matching: How methods are matched.
    """

    run: RunConfig
    points: list[Point]
    matching: MatchingSettings

    @property
    def methods(self) -> list[str]:
        """The experiment's methods, in their order."""
        return list(dict.fromkeys(point.method for point in self.points))


def load_experiment_config(path: Path, overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Read and check an experiment's YAML.

    Raises:
        ConfigError: With every mistake found.
    """
    return check_experiment_config(merge(read_yaml(path), overrides or {}), where=str(path))


def check_experiment_config(content: Mapping[str, Any], where: str = "") -> ExperimentConfig:
    """Check a plain mapping as an experiment, every point of it included.

    Raises:
        ConfigError: With every mistake found.
    """
    _require_known_keys(content, where)
    own = {key: value for key, value in content.items() if key in ExperimentSections.model_fields}
    sections = validate(ExperimentSections, own, where)
    methods = content.get("methods", {"ift": {}, "ml-lr": {}, "swat": {}})
    if not isinstance(methods, Mapping):
        methods = {}  # told below
    _require_mappings(methods, where)
    points, changes = _points(methods, sections, content.get("training"), where)
    chained = [f"{label}-{chain}" for label in _chained(methods) for chain in sections.chains]
    _require_labels_apart([*map(str, methods), *chained], points, where)
    rest = {key: value for key, value in content.items() if key not in own or key == "selection"}
    run = check_run_config({**rest, **({"methods": changes} if points else {})}, where)
    _require_choice_on_other_prompts(run, points, sections, where)
    return ExperimentConfig(run, points, sections.matching)


def _require_known_keys(content: Mapping[str, Any], where: str) -> None:
    """Look for unknown sections among those of a run and of an experiment together."""
    known = [*RunConfig.model_fields, *ExperimentSections.model_fields]
    prefix, problems = f"{where}: " if where else "", []
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f'Did you mean "{near[0]}"?' if near else f"Valid keys: {', '.join(dict.fromkeys(known))}."
            problems.append(f"{prefix}{key}: unknown key. {hint}")
    if problems:
        raise ConfigError(problems)


def _require_mappings(methods: Mapping[str, Any], where: str) -> None:
    prefix = f"{where}: " if where else ""
    wrong = {label: given for label, given in methods.items() if given is not None and not isinstance(given, Mapping)}
    if wrong:
        raise ConfigError(
            [f"{prefix}methods.{label} must be a mapping of settings; got {given!r}" for label, given in wrong.items()]
        )


def _require_labels_apart(methods: Iterable[str], points: Sequence[Point], where: str) -> None:
    """Two points of one label would be one cell: a method called as another with a chain, or values shown alike."""
    prefix = f"{where}: " if where else ""
    problems = [
        f'{prefix}two settings would be called "{label}". Rename a method or a chain, or give values '
        "that differ in six digits."
        for label in _repeated(methods) + _repeated(point.label for point in points)
    ]
    if problems:
        raise ConfigError(problems)


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _points(
    methods: Mapping[str, Any], sections: ExperimentSections, shared: Any, where: str
) -> tuple[list[Point], dict[str, dict[str, Any]]]:
    points: list[Point] = []
    changes: dict[str, dict[str, Any]] = {}
    for method, settings in _with_chains(methods, sections.chains, shared).items():
        own = _own_sweep(settings.pop(_SWEEP, {}), method, where)
        sweep = {**sections.sweep, **own}
        for values in itertools.product(*sweep.values()):
            chosen = dict(zip(sweep, values, strict=True))
            label = _label(method, {key: chosen[key] for key in chosen if len(sweep[key]) > 1})
            points.append(Point(label, method, chosen))
            nested: dict[str, Any] = {}
            for key, value in chosen.items():
                nested = merge(nested, nest(key.split("."), value))
            changes[label] = merge(settings, nested)
    return points, changes


def _with_chains(
    methods: Mapping[str, Any], chains: Mapping[str, ChainParts], shared: Any
) -> dict[str, dict[str, Any]]:
    """Return each method, and each method with each chain behind what all methods have."""
    found: dict[str, dict[str, Any]] = {}
    for label, given in methods.items():
        settings = {"method": str(label), **(given if isinstance(given, Mapping) else {})}
        found[str(label)] = dict(settings)
        for name, parts in chains.items() if label in _chained(methods) else ():
            found[f"{label}-{name}"] = {**settings, **_behind_shared(parts, shared)}
    return found


def _behind_shared(parts: ChainParts, shared: Any) -> dict[str, list[Any]]:
    """Return the steps of each part that a chain has, behind those that `training` names for all methods.

    Such as an attack on the data that all methods face: a defense on the data must not take its place.
    """
    first = {part: shared.get(part) if isinstance(shared, Mapping) else None for part in ChainParts.model_fields}
    return {
        part: [*(given if isinstance(given, list | tuple) else ()), *steps]
        for part, given in first.items()
        if (steps := parts.model_dump()[part])
    }


def _chained(methods: Mapping[str, Any]) -> list[str]:
    """Return the methods that have no chain of their own."""
    settings = {label: with_preset({"method": label, **(given or {})}) for label, given in methods.items()}
    return [label for label, own in settings.items() if not {*ChainParts.model_fields} & {*own}]


def _own_sweep(given: Any, method: str, where: str) -> dict[str, tuple[Scalar, ...]]:
    return validate(ExperimentSections, {_SWEEP: given}, where, at=f"methods.{method}").sweep


def _checked_sweep(sweep: dict[str, tuple[Scalar, ...]]) -> dict[str, tuple[Scalar, ...]]:
    for key, values in sweep.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{key} must have at least one value, all different")
        if key == "seed":
            raise ValueError("seed is no hyperparameter; give seeds")
        unfit = [value for value in values if not _IN_A_LABEL.fullmatch(_shown(value))]
        if unfit:
            raise ValueError(f"{key}: {unfit[0]!r} cannot be part of a folder's name; give such settings in methods")
    return sweep


def _label(method: str, values: Mapping[str, Scalar]) -> str:
    return ".".join([method, *(f"{key.rpartition('.')[2]}-{_shown(value)}" for key, value in values.items())])


def _shown(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _require_choice_on_other_prompts(
    run: RunConfig, points: Sequence[Point], sections: ExperimentSections, where: str
) -> None:
    prefix = f"{where}: " if where else ""
    problems = []
    methods = list(dict.fromkeys(point.method for point in points))
    if sections.matching.reference not in methods:
        problems.append(
            f'{prefix}matching.reference: "{sections.matching.reference}" is none of the methods {", ".join(methods)}'
        )
    if len(points) > len(methods) and run.selection is None:
        problems.append(
            f"{prefix}selection: required where a method has several settings: the evaluation by which one of them is "
            "chosen must be on other prompts than the one that is reported"
        )
    if run.selection is not None:
        shared = sorted({*run.selection.suites} & {*run.evaluation.suites})
        problems += [f'{prefix}selection.suites: "{name}" is reported too; choose on other prompts' for name in shared]
        if not run.selection.suites:
            problems.append(f"{prefix}selection.suites: required, with harmful prompts other than the reported ones")
        if run.selection.task is None or run.selection.task == run.evaluation.task:
            problems.append(f"{prefix}selection.task: must be given, and be another one than evaluation.task")
    if problems:
        raise ConfigError(problems)
