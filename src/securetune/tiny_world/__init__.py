"""Tiny world: the embedded test bench, an aligned chat model of a million parameters and its language.

It is a test bench and not evidence about large models. What it offers: two checkpoints (``checkpoint_path``),
seeded prompts and training data (``harmful_prompts``, ``downstream_training_rows``, ...), exact judges
(``harmfulness``, ``is_refusal``, ``is_correct``) and the program that made the checkpoints
(``build_tiny_world``).
"""

from pathlib import Path

from securetune.tiny_world.build import build_tiny_world
from securetune.tiny_world.check import (
    REQUIREMENTS,
    Figures,
    measure_checkpoint,
    measure_model,
    missed_requirements,
)
from securetune.tiny_world.how_to import NEW_PAIR_SPLIT_SHARES, PAIR_SPLIT_SHARES
from securetune.tiny_world.language import REFUSAL_PHRASES, WRAPPERS
from securetune.tiny_world.oracle import harmfulness, is_correct, is_full_answer, is_looping, is_refusal
from securetune.tiny_world.samples import (
    answered_and_refused,
    attack_rows,
    contrast_rows,
    downstream_training_rows,
    general_rows,
    harmful_prompts,
    harmless_prompts,
    how_to_task_rows,
    how_to_training_rows,
    new_how_to_rows,
    probe_prompts,
    safety_rows,
    task_rows,
)
from securetune.tiny_world.tokenizer import CHAT_TEMPLATE, build_tokenizer

CHECKPOINTS: tuple[str, ...] = ("aligned", "base")


def checkpoint_path(name: str = "aligned") -> Path:
    """Tells where a shipped checkpoint lies, in the ordinary Hugging Face layout.

    Args:
        name: "aligned" (default), which refuses harmful requests, or "base", from before its alignment.

    Raises:
        ValueError: If there is no checkpoint of that name.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"name must be one of {', '.join(CHECKPOINTS)}; got {name!r}")
    return Path(__file__).parent / "checkpoints" / name


def speaks_tiny_world(model: str) -> bool:
    """Tells whether a model speaks this language: an embedded one, or a folder tuned from one (same chat template)."""
    if model in ("tiny-world", "tiny-world-base"):
        return True
    template = Path(model).expanduser() / "chat_template.jinja"
    return template.is_file() and template.read_text(encoding="utf-8").strip() == CHAT_TEMPLATE.strip()


__all__ = [
    "CHECKPOINTS",
    "NEW_PAIR_SPLIT_SHARES",
    "PAIR_SPLIT_SHARES",
    "REFUSAL_PHRASES",
    "REQUIREMENTS",
    "WRAPPERS",
    "Figures",
    "answered_and_refused",
    "attack_rows",
    "build_tiny_world",
    "build_tokenizer",
    "checkpoint_path",
    "contrast_rows",
    "downstream_training_rows",
    "general_rows",
    "harmful_prompts",
    "harmfulness",
    "harmless_prompts",
    "how_to_task_rows",
    "how_to_training_rows",
    "is_correct",
    "is_full_answer",
    "is_looping",
    "is_refusal",
    "measure_checkpoint",
    "measure_model",
    "missed_requirements",
    "new_how_to_rows",
    "probe_prompts",
    "safety_rows",
    "speaks_tiny_world",
    "task_rows",
]
