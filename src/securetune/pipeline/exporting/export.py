"""From a manifest to the file that another tool reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from securetune.artifacts import RobustModules, read_artifact, write_text
from securetune.config import ExportConfig, ModelSettings, TrainingSettings
from securetune.defenses import defense_of
from securetune.errors import ConfigError, InputError, ProblemList
from securetune.models import check_model, check_same_model_in_files
from securetune.pipeline.exporting.axolotl import export_to_axolotl
from securetune.pipeline.exporting.exported import Exported
from securetune.pipeline.exporting.llama_factory import export_to_llamafactory
from securetune.pipeline.exporting.peft_adapter import export_to_peft
from securetune.pipeline.skeletons import TrainingSkeleton, make_training_skeleton
from securetune.training import setting_problems

TOOLS: dict[str, Callable[[TrainingSkeleton, ModelSettings], Exported]] = {
    "peft": export_to_peft,
    "axolotl": export_to_axolotl,
    "llamafactory": export_to_llamafactory,
}
"""What `--to` takes."""

_CHAINED = {
    "before": "Prepare the data with securetune.prepare_data, and give the result to the tool.",
    "after": "Run `securetune patch` on what the tool has trained.",
    "generation": "Name it when the model is evaluated (evaluation.generation).",
}
"""Part of a chain → where it goes instead."""

_ANY_STEPS = 100
"""Rates and parameters do not depend on the number of steps; only that a warm-up has some."""


def export(config: ExportConfig, manifest: Path, tool: str, out: Path) -> Exported:
    """Check, and write to `out` what the tool needs for a method's first phase: what trains, and at which rate.

    What is written is matched against the names of the model's real parameters, as the tool would match them, and
    refused unless that gives exactly the manifest's.

    Args:
        config: Model, method and training settings.
        manifest: What `securetune search` wrote.
        tool: A key of `TOOLS`.
        out: The file.

    Raises:
        InputError: If the input cannot be used, or the tool cannot express the manifest.
    """
    problems = ProblemList()
    if tool not in TOOLS:
        problems.found.append(f'--to "{tool}" is unknown. Tools: {", ".join(TOOLS)}.')
    model_problems = check_model(config.model)
    problems.found += model_problems
    with problems.collect():
        _require_defense_with_manifest(config.training)
    problems.found += setting_problems(config.training, config.model)
    problems.found += [
        f"training.{part}: is not part of an export. {instead}"
        for part, instead in _CHAINED.items()
        if getattr(config.training, part)
    ]
    modules = None
    with problems.collect():
        modules = read_artifact(manifest, RobustModules)
        if not model_problems:
            check_same_model_in_files(modules.model, config.model, str(manifest))
    problems.raise_if_any(InputError)
    steps = config.training.max_steps or _ANY_STEPS
    exported = TOOLS[tool](make_training_skeleton(config.model, config.training, modules, steps), config.model)
    write_text(out, exported.text)
    return exported


def _require_defense_with_manifest(settings: TrainingSettings) -> None:
    if not defense_of(settings).needs_manifest:
        raise ConfigError(f'method "{settings.method}" uses no manifest: there is nothing to export')
