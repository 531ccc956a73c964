"""An experiment on several data sets: the same methods on each, one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from securetune.config.base import Settings
from securetune.config.checking import merge, validate
from securetune.config.experiment import ExperimentConfig, check_experiment_config
from securetune.config.files import read_yaml
from securetune.config.recipes import TrainingData
from securetune.errors import ConfigError

DATA_SETS = "data_sets"
ONLY = ""
"""Name of the data set of an experiment that has one."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class DataSetSections(Settings):
    """What differs from one data set of an experiment to the next; each section is laid over the file's own.

    Attributes:
        data: The training data, as in a run.
        training: Settings of the training that belong to these data, such as `max_length`.
        evaluation: Of the reported evaluation, above all its `task`.
        selection: Of the evaluation by which settings are chosen.
    """

    data: TrainingData
    training: dict[str, Any] = Field(default={})
    evaluation: dict[str, Any] = Field(default={})
    selection: dict[str, Any] = Field(default={})


def load_experiment_configs(path: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, ExperimentConfig]:
    """Read and check an experiment's YAML.

    Returns:
        Data set → its experiment, in the order of the file; under `ONLY` where there is no section `data_sets`.

    Raises:
        ConfigError: With every mistake found, in all data sets.
    """
    return check_experiment_configs(merge(read_yaml(path), overrides or {}), where=str(path))


def check_experiment_configs(content: Mapping[str, Any], where: str = "") -> dict[str, ExperimentConfig]:
    """Check a plain mapping as an experiment on one data set or several.

    Raises:
        ConfigError: With every mistake found. One that all data sets have is told once.
    """
    if DATA_SETS not in content:
        return {ONLY: check_experiment_config(content, where)}
    given = _named_data_sets(content, where)
    shared = {key: value for key, value in content.items() if key != DATA_SETS}
    found: dict[str, ExperimentConfig] = {}
    problems: dict[str, list[str]] = {}
    for name, sections in given.items():
        try:
            own = validate(DataSetSections, sections, at=f"{DATA_SETS}.{name}").model_dump(exclude_unset=True)
            found[name] = check_experiment_config(merge(shared, own))
        except ConfigError as error:
            problems[name] = error.problems
    if problems:
        raise ConfigError(_told_once(problems, among=len(given), where=where))
    return found


def _named_data_sets(content: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    prefix = f"{where}: " if where else ""
    given = content[DATA_SETS]
    if not isinstance(given, Mapping) or not given or not all(_NAME.fullmatch(str(name)) for name in given):
        raise ConfigError(
            f"{prefix}{DATA_SETS} must have at least one name of letters, digits, '.', '_' and '-', each with its "
            f"`data`; got {given!r}"
        )
    if "data" in content:
        raise ConfigError(f"{prefix}data: each data set of {DATA_SETS} has its own. Leave it out.")
    return {str(name): sections for name, sections in given.items()}


def _told_once(problems: Mapping[str, list[str]], among: int, where: str) -> list[str]:
    """Put the data set before a mistake, unless all of them have it."""
    everywhere = set.intersection(*map(set, problems.values())) if len(problems) == among else set()
    told: list[str] = []
    for name, listed in problems.items():
        for problem in listed:
            is_own = problem not in everywhere and not problem.startswith(f"{DATA_SETS}.")
            told.append(f"{where}: " * bool(where) + f"{DATA_SETS}.{name}: " * is_own + problem)
    return list(dict.fromkeys(told))
