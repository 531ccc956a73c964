"""Reading a run folder: every piece is optional, because a report must also be possible in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from securetune.artifacts import (
    Response,
    RobustModules,
    RobustnessReport,
    RunRecord,
    Scores,
    TrainingResult,
    read_artifact,
    read_json_lines,
    read_responses,
    responses_path,
    sha256_text,
)
from securetune.artifacts.files import ArtifactType
from securetune.config import RunConfig, load_run_config
from securetune.errors import ArtifactError
from securetune.tiny_world.tokenizer import CHAT_TEMPLATE

START = "start"
"""Label of the untouched model."""

_TINY_WORLD_NAMES = ("tiny-world", "tiny-world-base")


@dataclass(frozen=True)
class EvaluatedModel:
    """One evaluated model of a run: the start model, or one method with one seed.

    Attributes:
        folder: Holds `scores.json` and the answers.
        seed: Training seed, or None for the start model.
        scores: Its scores.
        training: How it was trained, or None for the start model, or if the file is missing.
    """

    folder: Path
    seed: int | None
    scores: Scores
    training: TrainingResult | None

    @cached_property
    def _read(self) -> dict[str, list[Response]]:
        return {}

    def responses(self, suite: str) -> list[Response]:
        """Return the answers to a suite or task, read once.

        Raises:
            ArtifactError: If they are missing or spoiled.
        """
        if suite not in self._read:
            path = responses_path(self.folder, suite)
            rows = read_responses(path)
            if not rows:
                raise ArtifactError(f"{path}: no such file, or no answers in it, though {suite} has scores")
            self._read[suite] = rows
        return self._read[suite]


@dataclass(frozen=True)
class RunResults:
    """What a run folder holds so far.

    Attributes:
        path: The folder.
        config: Its resolved configuration, or None.
        record: How far the run is, or None.
        robustness: Result of the analysis, or None.
        manifest: The searched modules, or None.
        trace: Steps of the search; empty without one.
        start: The evaluated start model, or None.
        methods: Label → its evaluated models, by seed; in the order of the configuration.
        missing: What the run should hold and does not, a few words each.
    """

    path: Path
    config: RunConfig | None
    record: RunRecord | None
    robustness: RobustnessReport | None
    manifest: RobustModules | None
    trace: list[dict[str, Any]]
    start: EvaluatedModel | None
    methods: dict[str, list[EvaluatedModel]]
    missing: list[str]

    @property
    def evaluated(self) -> Iterator[tuple[str, EvaluatedModel]]:
        """Every evaluated model with its label, the start model first."""
        if self.start is not None:
            yield START, self.start
        for label, models in self.methods.items():
            yield from ((label, model) for model in models)

    @property
    def is_test_bench(self) -> bool:
        """Whether the model is tiny world, or was made from it."""
        identities = [artifact.model for artifact in (self.robustness, self.manifest) if artifact is not None]
        identities += [model.scores.model for _, model in self.evaluated]
        template = sha256_text(CHAT_TEMPLATE)
        return any(found.name in _TINY_WORLD_NAMES or found.chat_template_hash == template for found in identities)


def read_run(path: Path) -> RunResults:
    """Read a run folder.

    Raises:
        ArtifactError: If it is no folder, holds nothing of a run, or a file in it is spoiled.
        ConfigError: If its configuration is spoiled.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such run folder")
    config = load_run_config(path / "config.yaml") if (path / "config.yaml").exists() else None
    start = _evaluated(path / "start", None, None)
    methods = {label: models for label in _labels(path, config) if (models := _models_of(path, label))}
    robustness = _optional(path / "analysis" / "robustness.json", RobustnessReport)
    if start is None and not methods and robustness is None:
        raise ArtifactError(f"{path}: holds no results of a run yet (no start model, method or analysis is complete)")
    return RunResults(
        path=path,
        config=config,
        record=_optional(path / "run.json", RunRecord),
        robustness=robustness,
        manifest=_optional(path / "search" / "robust_modules.json", RobustModules),
        trace=list(read_json_lines(path / "search" / "search_trace.jsonl")),
        start=start,
        methods=methods,
        missing=_missing(config, start, methods),
    )


def _optional(path: Path, kind: type[ArtifactType]) -> ArtifactType | None:
    return read_artifact(path, kind) if path.exists() else None


def _labels(path: Path, config: RunConfig | None) -> list[str]:
    configured = list(config.methods) if config else []
    found = sorted(folder.name for folder in (path / "methods").glob("*") if folder.is_dir())
    return [*configured, *(label for label in found if label not in configured)]


def _models_of(path: Path, label: str) -> list[EvaluatedModel]:
    found = []
    for folder in (path / "methods" / label).glob("seed-*"):
        seed = folder.name.removeprefix("seed-")
        model = _evaluated(folder / "evaluation", int(seed), folder / "training.json") if seed.isdigit() else None
        if model is not None:
            found.append(model)
    return sorted(found, key=lambda model: model.seed or 0)


def _evaluated(folder: Path, seed: int | None, training: Path | None) -> EvaluatedModel | None:
    scores = _optional(folder / "scores.json", Scores)
    if scores is None:
        return None
    return EvaluatedModel(folder, seed, scores, _optional(training, TrainingResult) if training else None)


def _missing(
    config: RunConfig | None, start: EvaluatedModel | None, methods: dict[str, list[EvaluatedModel]]
) -> list[str]:
    missing = [] if start else ["the start model's evaluation"]
    if config is not None:
        for label in config.methods:
            done = {model.seed for model in methods.get(label, [])}
            missing += [f"{label} with seed {seed}" for seed in config.seeds if seed not in done]
    return missing


def outcome_table(models: list[EvaluatedModel], suite: str, outcome: Any) -> Float[np.ndarray, "seed prompt"]:
    """Return one number a model and prompt.

    Args:
        models: Models that answered the same prompts.
        suite: Name of the suite or task.
        outcome: Response → number.

    Raises:
        ArtifactError: If they answered different prompts.
    """
    answers = [model.responses(suite) for model in models]
    prompts = [[response.id for response in listed] for listed in answers]
    for model, ids in zip(models, prompts, strict=True):
        if ids != prompts[0]:
            raise ArtifactError(f"{model.folder}: {suite} has other prompts than in {models[0].folder}")
    return np.array([[float(outcome(response)) for response in listed] for listed in answers])
