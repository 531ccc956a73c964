"""Everything about a training that can be known to be wrong before the model's weights are loaded."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from securetune.artifacts import DataPreparation, RobustModules, TrainingInputs, read_artifact, sha256_json
from securetune.config import MODULE_SETS, ModelSettings, TrainingSettings
from securetune.data.conversations import Conversation, conversations_hash, read_training_data
from securetune.data.prepared import PreparedData
from securetune.defenses import Defense, defense_of
from securetune.errors import ArtifactError, ConfigError, InputError, ProblemList
from securetune.models import check_model, check_same_model_in_files, is_quantized
from securetune.training.adapters import check_adapters
from securetune.training.robust_choice import require_sensitivities

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
"""transformers' schedules that need nothing but a number of steps."""

_SEED_LIMIT = 2**31  # numpy takes 32 bits, and a phase may add an offset

INPUTS_FILE = "training_inputs.json"
RESULT_FILE = "training.json"


@dataclass(frozen=True)
class CheckedTraining:
    """What a training needs, read and found usable.

    Attributes:
        defense: The method.
        conversations: The training data, as given or prepared.
        shapes: Shape of the rows of a file or data set → number of rows; empty if conversations were given.
        preparation: What defenses did to the data, or None.
        manifest: Mods_Rob, or None.
        manifest_name: Where it came from, for messages.
        inputs: Identity of all of this, for the output folder.
    """

    defense: Defense
    conversations: Sequence[Conversation]
    shapes: Mapping[str, int]
    preparation: DataPreparation | None
    manifest: RobustModules | None
    manifest_name: str
    inputs: TrainingInputs


def check_training(
    settings: TrainingSettings,
    model: ModelSettings,
    data: str | Path | Sequence[Conversation] | PreparedData,
    out: Path,
    manifest: RobustModules | None = None,
) -> CheckedTraining:
    """Check a training, and read what it needs but the weights.

    Args:
        settings: How to train.
        model: The start model.
        data: A file, the name of a data set or of the embedded data, or conversations; or what the defenses of
            `settings.before` made of them.
        out: Output folder.
        manifest: Mods_Rob; None reads the file that `settings.modules` names, if it names one.

    Raises:
        InputError: With every problem found.
    """
    problems = ProblemList()
    defense = conversations = inputs = None
    own_rows: Mapping[str, Sequence[Conversation]] = {}
    shapes: Mapping[str, int] = {}
    preparation: DataPreparation | None = None
    with problems.collect():
        defense = defense_of(settings)
    with suppress(InputError):  # told with the settings
        own_rows = defense.alignment_rows(model.name) if defense else {}
    problems.found += setting_problems(settings, model)
    if settings.after or settings.generation:
        key = "after" if settings.after else "generation"
        problems.found.append(f"training.{key}: this function trains alone; securetune.train applies the chain too")
    model_problems = check_model(model)
    problems.found += model_problems
    if not model_problems:
        with problems.collect():
            check_adapters(settings, model)
        with problems.collect():
            check_weights_can_train(settings, model)
    with problems.collect():
        conversations, shapes, preparation = _training_rows(data)
    with problems.collect():
        manifest = manifest or _manifest_of(settings)
        _check_manifest(manifest, settings, defense)
    manifest_name = "the manifest" if settings.modules in MODULE_SETS else settings.modules
    if manifest is not None and not model_problems:
        with problems.collect():
            check_same_model_in_files(manifest.model, model, manifest_name)
    if conversations is not None:
        inputs = training_inputs(settings, model, conversations, manifest, own_rows, preparation)
    with problems.collect():
        check_output_folder(out, inputs)
    problems.raise_if_any(InputError)
    assert defense is not None
    assert conversations is not None
    assert inputs is not None
    return CheckedTraining(defense, conversations, shapes, preparation, manifest, manifest_name, inputs)


def _training_rows(
    data: str | Path | Sequence[Conversation] | PreparedData,
) -> tuple[Sequence[Conversation], Mapping[str, int], DataPreparation | None]:
    if isinstance(data, PreparedData):
        return data.conversations, data.record.shapes, data.record
    conversations, shapes = read_training_data(data) if isinstance(data, str | Path) else (data, {})
    return conversations, shapes, None


def training_inputs(
    settings: TrainingSettings,
    model: ModelSettings,
    conversations: Sequence[Conversation],
    manifest: RobustModules | None,
    alignment_rows: Mapping[str, Sequence[Conversation]],
    preparation: DataPreparation | None = None,
) -> TrainingInputs:
    """Describe what a training is asked for.

    Args:
        settings: How to train.
        model: The start model.
        conversations: The data: prepared, or as given.
        manifest: Mods_Rob, or None.
        alignment_rows: The method's own rows.
        preparation: What defenses did to the data, if they are prepared.
    """
    found = conversations_hash(conversations)
    is_prepared = preparation is not None or not settings.before
    hashes = {name: conversations_hash(rows) for name, rows in alignment_rows.items()}
    return TrainingInputs(
        settings=settings.model_dump(mode="json"),
        model=model.model_dump(mode="json"),
        data_hash=found if is_prepared else None,
        given_hash=preparation.given_hash if preparation is not None else found if settings.before else None,
        modules_hash=sha256_json(manifest.model_dump(mode="json")) if manifest else None,
        alignment_hash=sha256_json(hashes) if hashes else None,
    )


def check_output_folder(out: Path, inputs: TrainingInputs | None) -> None:
    """Refuse a folder that holds something else; one that holds this training may go on.

    Args:
        out: The folder.
        inputs: What the training was asked for, or None if that could not be read.

    Raises:
        ConfigError: If it is a file, or holds another training, or a run.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: the output must be a folder; got a file")
    if (out / INPUTS_FILE).exists():
        found = read_artifact(out / INPUTS_FILE, TrainingInputs)
        differing = _differences(found, inputs) if inputs else []
        if differing:
            raise ConfigError(
                f"{out}: holds another training run (it differs in {', '.join(differing)}). "
                "Choose another folder, or delete this one."
            )
        return
    taken = [name for name in (RESULT_FILE, "model", "phases", "run.json") if (out / name).exists()]
    if taken:
        raise ConfigError(f"{out}: holds another run ({taken[0]}). Choose another folder, or delete this one.")


def _differences(found: TrainingInputs, wanted: TrainingInputs) -> list[str]:
    names = {"modules_hash": "modules", "alignment_hash": "the method's own rows"}
    if found.data_hash is not None and wanted.data_hash is not None:
        names = {"data_hash": "data" if wanted.given_hash is None else "the prepared data", **names}
    if found.given_hash is not None and wanted.given_hash is not None:
        names = {"given_hash": "data", **names}
    if found.identity and wanted.identity and found.identity != wanted.identity:
        names["identity"] = "the weights of the start model"
    differing = []
    for field in ("settings", "model"):
        old, new = getattr(found, field), getattr(wanted, field)
        prefix = "training" if field == "settings" else "model"
        differing += [f"{prefix}.{key}" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return differing + [names[field] for field in names if getattr(found, field) != getattr(wanted, field)]


def check_weights_can_train(settings: TrainingSettings, model: ModelSettings) -> None:
    """Refuse to train all parameters of a quantized model.

    Raises:
        ConfigError: If that is asked for.
    """
    if settings.tune == "full" and is_quantized(model):
        raise ConfigError(
            "tune: full cannot train rounded weights, and the start model is quantized. Use tune: lora, or the "
            "model in full precision."
        )


def setting_problems(settings: TrainingSettings, model: ModelSettings) -> list[str]:
    """Return what is wrong with the settings by themselves, one sentence each."""
    problems = []
    if settings.lr_scheduler_type not in SCHEDULES:
        near = difflib.get_close_matches(settings.lr_scheduler_type, SCHEDULES, n=1, cutoff=0.5)
        hint = f'Did you mean "{near[0]}"?' if near else f"Schedules: {', '.join(SCHEDULES)}."
        problems.append(f'lr_scheduler_type "{settings.lr_scheduler_type}" is unknown. {hint}')
    if settings.warmup_steps >= 1 and settings.warmup_steps != int(settings.warmup_steps):
        problems.append(f"warmup_steps must be a share below 1 or a whole number; got {settings.warmup_steps}")
    problems += _method_problems(settings, model)
    if not 0 <= settings.seed < _SEED_LIMIT:
        problems.append(f"seed must be in [0, {_SEED_LIMIT:,}); got {settings.seed}")
    if settings.tune == "lora" and not settings.lora.target_types:
        problems.append("lora.target_types must name at least one module type; got none")
    if settings.tune == "full" and model.dtype == "float16":
        problems.append('model.dtype "float16" cannot be trained in full: updates vanish. Use "float32" or "bfloat16".')
    if settings.tune == "lora" and (Path(model.name) / "adapter_config.json").exists():
        problems.append(f"{model.name}: is an adapter itself; merge it into its start model before adding another")
    if (device_index := model.device.partition("cuda:")[2]) not in ("", "0"):
        problems.append(
            f'model.device "{model.device}": training takes the first GPU; set CUDA_VISIBLE_DEVICES={device_index}'
        )
    if settings.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        problems.append("bf16: this GPU has no bfloat16. Leave it out, or set it to false.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problems.append("training runs in one process; start it without a distributed launcher")
    return problems


def _method_problems(settings: TrainingSettings, model: ModelSettings) -> list[str]:
    try:
        defense = defense_of(settings)
    except ConfigError:  # an unknown method is told where it is first asked for
        return []
    known = ProblemList()
    with known.collect():
        defense.check(model)
    with known.collect():
        defense.alignment_rows(model.name)
        defense.prompts_used(model.name)
    if defense.adapters_only and settings.tune != "lora":
        known.found.append(f'method "{defense.name}" works on adapters: tune must be "lora"; got "{settings.tune}"')
    steps = settings.max_steps
    return known.found + (warmup_problems(defense, steps, settings) if steps is not None else [])


def warmup_problems(defense: Defense, main_steps: int, settings: TrainingSettings) -> list[str]:
    """Refuse a learning-rate warm-up as long as a phase: a phase of one step would then learn nothing at all.

    Args:
        defense: The method, which says how many steps its phases have.
        main_steps: Optimizer steps of the main phase.
        settings: For the schedule and its warm-up.
    """
    if settings.lr_scheduler_type == "constant":  # it has no warm-up
        return []
    return [
        f"warmup_steps must be shorter than every phase; got {settings.warmup_steps:g}, and the phase "
        f'"{name}" has {steps} step{"s" * (steps > 1)}: its learning rate would begin at 0 and never reach its full '
        "value. Set warmup_steps to 0, or give the phase more steps."
        for name, steps in defense.phase_steps(main_steps, settings).items()
        if learning_rate_warmup_steps(settings, steps) >= steps
    ]


def learning_rate_warmup_steps(settings: TrainingSettings, phase_steps: int) -> int:
    """Return the steps of a phase's learning-rate warm-up, as transformers counts them."""
    chosen = settings.warmup_steps
    return int(chosen) if chosen >= 1 else math.ceil(chosen * phase_steps)


def _manifest_of(settings: TrainingSettings) -> RobustModules | None:
    """Read the manifest that the settings name as a file; the names of sets are for the pipeline to resolve."""
    if settings.modules in MODULE_SETS:
        return None
    return read_artifact(Path(settings.modules), RobustModules)


def _check_manifest(manifest: RobustModules | None, settings: TrainingSettings, defense: Defense | None) -> None:
    if defense is None or not defense.needs_manifest:
        return
    if manifest is None:
        raise ArtifactError(
            f'method "{defense.name}" needs the robust modules: give the file that `securetune search` writes '
            "(modules: robust_modules.json)"
        )
    require_sensitivities(manifest, defense, settings.modules)
    types = sorted({module.type for module in manifest.modules})
    if not types:
        raise ArtifactError("the manifest names no module at all; search with a larger tolerance")
    if settings.tune == "lora" and not set(types) & set(settings.lora.target_types):
        raise ConfigError(
            f"lora.target_types ({', '.join(settings.lora.target_types)}) must include one of the manifest's module "
            f"types ({', '.join(types)}): otherwise no robust module can learn"
        )
