"""Builds the checkpoints of tiny world from nothing: pretraining, then alignment.

Both phases are ordinary ``transformers`` training runs on pre-tokenised rows, with the loss on the
assistant's words only. The base checkpoint is written before alignment begins, and alignment starts from
the written (bf16) weights, so either phase can be repeated alone with the same result.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from securetune.artifacts import read_json
from securetune.errors import ConfigError
from securetune.tiny_world import check, curriculum
from securetune.tiny_world.samples import Row
from securetune.tiny_world.tokenizer import MAX_LENGTH_TOKENS, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast, Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """One training run.

    Attributes:
        mix: What the rows are made of.
        steps: Optimizer steps, at least 1.
        learning_rate: Peak rate of AdamW, above 0.
        scheduler: "constant_with_warmup" or "cosine".
        warmup_steps: Steps of linear warm-up.
        rows_per_step: Rows an optimizer step, a multiple of ``rows_per_batch``.
        rows_per_batch: Rows a forward pass. The rows of a step are sorted by length and cut into batches,
            which saves padding without making a step of one kind of row; 16 (default) trained 3.5 steps/s
            on one core where 32 trained 2.8.
    """

    mix: curriculum.Mix
    steps: int
    learning_rate: float
    scheduler: str
    warmup_steps: int
    rows_per_step: int = 64
    rows_per_batch: int = 16


# The rate falls to 0: held at 2e-3 it left general tasks at 0.86 and how-tos jumping between 0.94 and 1.00.
PRETRAINING = Phase(curriculum.PRETRAINING_MIX, steps=2600, learning_rate=2e-3, scheduler="cosine", warmup_steps=50)
ALIGNMENT = Phase(curriculum.ALIGNMENT_MIX, steps=400, learning_rate=5e-4, scheduler="cosine", warmup_steps=20)

SAVE_STEPS = 250
"""Steps between the resumable checkpoints of a phase: a good minute of one core."""

PROGRESS_PROMPTS = 48
"""Validation prompts for the figures that are logged whenever a phase saves; a few seconds."""


def build_tiny_world(
    out: str | Path,
    seed: int = 0,
    pretraining: Phase = PRETRAINING,
    alignment: Phase = ALIGNMENT,
    check_prompts: int = 200,
) -> dict[str, check.Figures]:
    """Makes ``out/base`` and ``out/aligned`` and measures both.

    A phase whose checkpoint is complete is not repeated, and one that was interrupted goes on from its last
    ``SAVE_STEPS``; delete ``out/aligned`` to repeat the alignment alone. About a quarter of an hour on one
    free core; a second thread gains nothing.

    Args:
        out: Folder to make; its ``figures.json`` holds what was measured.
        seed: Decides weights and rows; the shipped checkpoints have 0, the default. The language, its facts
            and its splits are the same for every seed.
        pretraining: How to make the base.
        alignment: How to align it.
        check_prompts: Held-out prompts for each figure.

    Returns:
        The figures of "base" and "aligned"; requirements that they miss are logged as warnings.

    Raises:
        ConfigError: If ``out`` holds a world of another seed or of other phases, or something else.
    """
    from transformers import AutoModelForCausalLM

    out = Path(out)
    _claim_folder(out, {"seed": seed, "pretraining": asdict(pretraining), "alignment": asdict(alignment)})
    tokenizer = build_tokenizer()
    if not (out / "base").exists():
        model = train_phase(new_model(tokenizer, seed), tokenizer, pretraining, out / "work-base", seed)
        _write_checkpoint(model, tokenizer, out / "base")
    if not (out / "aligned").exists():
        base = AutoModelForCausalLM.from_pretrained(out / "base", dtype="float32")
        model = train_phase(base, tokenizer, alignment, out / "work-aligned", seed)
        _write_checkpoint(model, tokenizer, out / "aligned")
    figures = {name: check.measure_checkpoint(out / name, check_prompts) for name in ("base", "aligned")}
    report = {name: f.as_dict() for name, f in figures.items()}
    _write_json(report, out / "figures.json")
    for name, f in figures.items():
        for line in check.missed_requirements(name, f):
            logger.warning("%s", line)
    for name in ("work-base", "work-aligned"):
        shutil.rmtree(out / name, ignore_errors=True)
    return figures


def _claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """Notes what a folder is for, so that no phase of another world is taken for one of this."""
    note = out / "settings.json"
    claimed = read_json(note) if note.exists() else None
    occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if occupied and claimed != settings:
        found = "something else" if claimed is None else "a world of another seed or other phases"
        raise ConfigError(f"{out}: must be a new or empty folder, or hold a build of the same seed; holds {found}")
    out.mkdir(parents=True, exist_ok=True)
    _write_json(settings, note)


def _write_json(content: dict[str, Any], path: Path) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.rename(path)


def model_config(tokenizer: "PreTrainedTokenizerFast") -> "LlamaConfig":
    """Describes the model: Llama, 6 layers of width 128, 1.2 million parameters."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train_phase(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    phase: Phase,
    work: Path,
    seed: int,
) -> "PreTrainedModel":
    """Trains a model through one phase, going on from the last checkpoint in ``work`` if there is one.

    Args:
        model: Float32 model, trained in place.
        tokenizer: The tiny-world tokenizer.
        phase: What to train on, how and how long.
        work: Folder of the resumable checkpoints.
        seed: Decides the rows.
    """
    from transformers.trainer_utils import get_last_checkpoint

    rows = curriculum.curriculum_rows(phase.mix, phase.steps * phase.rows_per_step, seed)
    examples = _sort_within_steps(tokenize_rows(rows, tokenizer), phase.rows_per_step)
    trainer = _make_trainer(model, tokenizer, phase, work, seed, examples)
    resume_from = get_last_checkpoint(str(work)) if work.exists() else None
    started = time.perf_counter()
    result = trainer.train(resume_from_checkpoint=resume_from)
    seconds = time.perf_counter() - started
    logger.info("%d steps in %.0f s, mean loss %.3f", result.global_step, seconds, result.training_loss)
    return model


def tokenize_rows(rows: Iterable[Row], tokenizer: "PreTrainedTokenizerFast") -> list[dict[str, list[int]]]:
    """Renders rows with the chat template and labels the assistant's tokens only."""
    conversations = [row["messages"] for row in rows]
    encoded: Any = tokenizer.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return [
        {"input_ids": ids, "labels": [i if own else -100 for i, own in zip(ids, mask, strict=True)]}
        for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ]


def log_figures(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", step: int) -> None:
    """Logs how far a phase has come, on validation prompts."""
    figures = check.measure_model(model, tokenizer, PROGRESS_PROMPTS, split="validation")
    logger.info("step %d: %s", step, figures)


def _sort_within_steps(examples: list[dict[str, list[int]]], rows_per_step: int) -> list[dict[str, list[int]]]:
    return [
        example
        for start in range(0, len(examples), rows_per_step)
        for example in sorted(examples[start : start + rows_per_step], key=lambda e: len(e["input_ids"]))
    ]


def new_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "PreTrainedModel":
    """Makes an untrained model, its weights decided by the seed."""
    from transformers import LlamaForCausalLM, set_seed

    set_seed(seed)
    return LlamaForCausalLM(model_config(tokenizer))


def _make_trainer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    phase: Phase,
    work: Path,
    seed: int,
    examples: list[dict[str, list[int]]],
) -> "Trainer":
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    class InOrderTrainer(Trainer):
        """Takes the examples in their order: they are random already, and sorted within a step."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            from torch.utils.data import SequentialSampler

            return SequentialSampler(examples)

    class LogFigures(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            log_figures(model, tokenizer, state.global_step)

    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=phase.steps,
        per_device_train_batch_size=phase.rows_per_batch,
        gradient_accumulation_steps=phase.rows_per_step // phase.rows_per_batch,
        learning_rate=phase.learning_rate,
        lr_scheduler_type=phase.scheduler,
        warmup_steps=phase.warmup_steps,
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=True,
        save_steps=SAVE_STEPS,
        save_total_limit=1,
        logging_steps=50,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    return InOrderTrainer(
        model=model, args=arguments, train_dataset=examples, data_collator=collator, callbacks=[LogFigures()]
    )


def _write_checkpoint(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", path: Path) -> None:
    """Writes bf16 weights and tokenizer beside their place and renames them, so that no half is read."""
    import copy

    import torch

    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    compact: Any = copy.deepcopy(model)
    compact.to(torch.bfloat16)
    compact.generation_config.do_sample = False
    compact.generation_config.max_new_tokens = check.MAX_NEW_TOKENS
    compact.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(path)
