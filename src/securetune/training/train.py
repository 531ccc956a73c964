"""Fine-tuning from a start model to a tuned one: checks, phases, model folder, record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from securetune.artifacts import (
    PhaseResult,
    RobustModules,
    TrainingResult,
    environment,
    read_artifact,
    write_json,
)
from securetune.config import ModelSettings, TrainingSettings
from securetune.data.conversations import Conversation
from securetune.data.prepared import PreparedData
from securetune.defenses import Defense, DefenseContext
from securetune.errors import ConfigError
from securetune.models import ChatModel, ProjectionModule, load, map_modules
from securetune.progress import ProgressCallback, silent
from securetune.training.adapters import add_adapters
from securetune.training.alignment_batches import EncodedAlignmentRows, encode_alignment_rows
from securetune.training.checks import (
    INPUTS_FILE,
    RESULT_FILE,
    CheckedTraining,
    check_output_folder,
    check_training,
    warmup_problems,
)
from securetune.training.encoding import EncodedConversations, encode_conversations
from securetune.training.packing import check_rows_stay_apart, pack_rows
from securetune.training.parameters import split_parameters
from securetune.training.phase_run import PhaseJob, forget_phases, mixed_precision, run_phase
from securetune.training.robust_choice import check_made_for
from securetune.training.tuned_model import base_reference, write_tuned_model
from securetune.training.update_norms import measure_update, take_snapshot

FULL_LEARNING_RATE = 2e-5
"""TRL's default for all parameters."""

LORA_LEARNING_RATE = 2e-4
"""The paper's group's, and the usual one for adapters."""


def train(
    settings: TrainingSettings,
    model: ModelSettings,
    data: str | Path | Sequence[Conversation] | PreparedData,
    out: Path,
    manifest: RobustModules | None = None,
    progress: ProgressCallback | None = None,
) -> TrainingResult:
    """Fine-tune a model with one of the registered methods.

    A training that was killed goes on when it is started again with the same arguments, and ends with the same model;
    a complete one is not repeated. `out` gets `model/` (the tuned model, or its adapter), `training_log.jsonl`, and
    last of all `training.json`.

    Args:
        settings: How to train.
        model: The start model. With `dtype: auto`, all parameters are trained in float32, because small updates vanish
            in bfloat16; LoRA keeps the start model's precision, and its adapters are float32.
        data: A file of conversations, the name of a data set, `tiny-world`, or conversations. With `settings.before`,
            what those defenses made of them: `securetune.train` prepares the data, this function does not.
        out: Output folder.
        manifest: The robust modules, or None if the method needs none or `settings.modules` names the file.
        progress: Called after each step with the phase's name, the step and the number of steps.

    Raises:
        InputError: With every problem that can be found before the training begins.
        RunError: If the loss stops being a number.

    Example:
        >>> from securetune.config import ModelSettings, TrainingSettings
        >>> settings = TrainingSettings(method="ift", max_steps=200)
        >>> train(settings, ModelSettings(), "tiny-world", Path("tuned"))  # doctest: +SKIP
    """
    out = Path(out)
    if settings.before and not isinstance(data, PreparedData):
        raise ConfigError("training.before: this function trains alone; securetune.train prepares the data too")
    checked = check_training(settings, model, data, out, manifest)
    if (out / RESULT_FILE).exists() and (out / "model").is_dir():
        forget_phases(out)
        return read_artifact(out / RESULT_FILE, TrainingResult)
    chat = load(_in_training_precision(model, settings))
    inputs = checked.inputs.model_copy(update={"identity": chat.identity})
    check_output_folder(out, inputs)
    _check_manifest_fits(checked, chat)
    _check_prepared_with(checked, chat)
    rows = encode_for_training(checked.defense, checked.conversations, settings, chat.tokenizer, chat.model.config)
    alignment = _encode_alignment_rows(checked.defense, settings, chat)
    modules = map_modules(chat.model)
    network = _prepared(chat, modules, settings)
    if settings.packing:
        check_rows_stay_apart(network, chat.tokenizer, rows.dataset, mixed_precision(settings, chat.model.device))
    context = _context(checked, settings, network, modules, rows, chat, out)
    if problems := warmup_problems(checked.defense, context.main_steps, settings):  # of epochs, known only now
        raise ConfigError(problems)
    write_json(out / INPUTS_FILE, inputs)
    job = PhaseJob(
        model=network,
        tokenizer=chat.tokenizer,
        defense=checked.defense,
        settings=settings,
        bf16=mixed_precision(settings, chat.model.device),
        dataset=rows.dataset,
        modules=modules,
        robust_modules=frozenset(_robust_names(checked.manifest)),
        out=out,
        progress=progress or silent,
        alignment_rows=alignment.rows,
    )
    result = _run(job, context, checked, chat, rows)
    result = result.model_copy(update={"alignment_data": alignment.counts})
    write_tuned_model(network, chat.tokenizer, result, out / "model")
    write_json(out / RESULT_FILE, result)
    forget_phases(out)
    return result


def _in_training_precision(model: ModelSettings, settings: TrainingSettings) -> ModelSettings:
    if settings.tune == "full" and model.dtype == "auto":
        return model.model_copy(update={"dtype": "float32"})
    return model


def _check_manifest_fits(checked: CheckedTraining, chat: ChatModel) -> None:
    if checked.manifest is not None:
        check_made_for(checked.manifest, chat.identity, chat.model, checked.manifest_name)


def _check_prepared_with(checked: CheckedTraining, chat: ChatModel) -> None:
    """Refuse data that a defense chose by looking at another model."""
    looked_at = checked.preparation.model if checked.preparation else None
    if looked_at is not None and looked_at.weights_fingerprint != chat.identity.weights_fingerprint:
        raise ConfigError(
            f"the data were prepared with other weights of {looked_at.name} than are here now. Remove the folder with "
            "the prepared data, and start again."
        )


def encode_for_training(
    defense: Defense,
    conversations: Sequence[Conversation],
    settings: TrainingSettings,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
) -> EncodedConversations:
    """Encode the data as a method prepares it, and pack the rows if that is wished.

    No row may be longer than the model's context.
    """
    longest = _longest_row(settings, config)
    rows = encode_conversations(tokenizer, defense.prepare_data(conversations, settings), longest, settings.loss_on)
    if not settings.packing:
        return rows
    packed = pack_rows(rows.dataset, rows.counts)
    return EncodedConversations(packed.dataset, packed.counts, [*rows.notes, packed.note])


def _longest_row(settings: TrainingSettings, config: PreTrainedConfig) -> int:
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(settings.max_length, context) if context else settings.max_length


def _encode_alignment_rows(defense: Defense, settings: TrainingSettings, chat: ChatModel) -> EncodedAlignmentRows:
    longest = _longest_row(settings, chat.model.config)
    return encode_alignment_rows(defense, chat.settings.name, chat.tokenizer, longest)


def _prepared(
    chat: ChatModel, modules: Sequence[ProjectionModule], settings: TrainingSettings
) -> PreTrainedModel | PeftModel:
    if settings.tune == "lora":
        return add_adapters(chat.model, modules, settings, base_reference(chat.settings.name))
    chat.model.requires_grad_(True)  # PEFT leaves the weights frozen that it merged an adapter into
    return chat.model


def _context(
    checked: CheckedTraining,
    settings: TrainingSettings,
    network: PreTrainedModel | PeftModel,
    modules: Sequence[ProjectionModule],
    rows: EncodedConversations,
    chat: ChatModel,
    out: Path,
) -> DefenseContext:
    robust_names = None if checked.manifest is None else _robust_names(checked.manifest)
    return DefenseContext(
        settings=settings,
        learning_rate=base_learning_rate(settings),
        main_steps=main_phase_steps(settings, len(rows.dataset)),
        parameters=split_parameters(network, modules, robust_names, settings, checked.defense),
        modules=map_modules(network),
        tokenizer=chat.tokenizer,
        model_name=chat.settings.name,
        rows=rows.dataset,
        sensitivities=checked.manifest.sensitivities if checked.manifest else {},
        folder=out,
    )


def base_learning_rate(settings: TrainingSettings) -> float:
    """Return the base rate with its default filled in."""
    return settings.learning_rate or (LORA_LEARNING_RATE if settings.tune == "lora" else FULL_LEARNING_RATE)


def main_phase_steps(settings: TrainingSettings, row_count: int) -> int:
    """Return the optimizer steps of the main phase; the last batches of an epoch may be fewer than a full step's."""
    if settings.max_steps is not None:
        return settings.max_steps
    batches = math.ceil(row_count / settings.per_device_train_batch_size)
    steps_per_epoch = math.ceil(batches / settings.gradient_accumulation_steps)
    return math.ceil(settings.num_train_epochs * steps_per_epoch)


def _run(
    job: PhaseJob, context: DefenseContext, checked: CheckedTraining, chat: ChatModel, rows: EncodedConversations
) -> TrainingResult:
    """Run the phases and describe what came out."""
    checked.defense.before_training(job.model, context)
    start = take_snapshot(job.model)
    phases: list[PhaseResult] = []
    for phase in checked.defense.phases(context):
        before = take_snapshot(job.model) if phases else start
        phases.append(run_phase(job, phase, before))
    checked.defense.after_training(job.model, context)
    manifest = checked.manifest
    adapted = {name for name in job.robust_modules if _has_adapter(job, name)}
    return TrainingResult(
        method=checked.defense.name,
        model=chat.identity,
        settings=checked.inputs.settings,
        resolved=_resolved(job, context),
        selection=manifest.selection if manifest else None,
        robust_modules=_robust_names(manifest),
        modules_without_adapter=[name for name in _robust_names(manifest) if name not in adapted],
        data=rows.counts.model_copy(update={"shapes": dict(checked.shapes), "preparation": checked.preparation}),
        phases=phases,
        update=measure_update(job.model, start, job.modules, set(job.robust_modules)),
        evidence=checked.defense.evidence(),
        notes=[*rows.notes, *checked.defense.notes()],
        duration_seconds=sum(phase.duration_seconds for phase in phases),
        environment=environment(),
    )


def _has_adapter(job: PhaseJob, module_name: str) -> bool:
    kinds = {module.name: module.type for module in job.modules}
    return job.settings.tune == "full" or kinds[module_name] in job.settings.lora.target_types


def _resolved(job: PhaseJob, context: DefenseContext) -> dict[str, Any]:
    first = next(job.model.parameters())
    return {
        "learning_rate": context.learning_rate,
        "main_steps": context.main_steps,
        "bf16": job.bf16,
        "dtype": str(first.dtype).removeprefix("torch."),
        "device": str(first.device),
    }


def _robust_names(manifest: RobustModules | None) -> list[str]:
    return [module.name for module in manifest.modules] if manifest else []
