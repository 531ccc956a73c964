"""An adapter becomes a part of its start model: one ordinary model folder, which every tool reads."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

from securetune.artifacts import GENERATION_FILE
from securetune.config import ModelSettings
from securetune.errors import ConfigError, InputError, ModelError, ProblemList
from securetune.models import check_model, is_quantized, load
from securetune.models.checks import adapter_base
from securetune.models.registry import find_model, shown_name
from securetune.pipeline.own_card import own_card
from securetune.training.tuned_model import write_model_folder

_WEIGHTS = "adapter_model.safetensors"


class MergedModel(NamedTuple):
    """What was written.

    Attributes:
        path: The folder.
        start_model: As the adapter names it.
        dtype: Precision of the weights.
        parameter_count: Of the merged model.
    """

    path: Path
    start_model: str
    dtype: str
    parameter_count: int


def merge(adapter: Path, out: Path, dtype: Literal["float32", "bfloat16", "float16"] = "float32") -> MergedModel:
    """Merge a PEFT adapter into its start model, and save it as safetensors with tokenizer, template and card.

    Args:
        adapter: Folder with `adapter_config.json`, such as the one that `securetune train` writes with `tune: lora`.
        out: The new folder.
        dtype: Precision of the merged weights. float32 by default: rounding to 16 bits takes away a part of what small
            updates did. bfloat16 takes half the space; measure the rounded model then.

    Raises:
        InputError: If the folder is no adapter, the start model is quantized or cannot be used, or `out` exists.

    Example:
        >>> merge(Path("tuned/model"), Path("merged"))  # doctest: +SKIP
    """
    settings = ModelSettings(name=str(adapter), dtype=dtype, device="cpu")
    problems = ProblemList()
    if out.exists():
        problems.found.append(f"{out}: exists already. Give another --out, or remove it.")
    base = None
    with problems.collect():
        base = _start_model(adapter)
        _require_unquantized(base)
        problems.found += check_model(settings)
    problems.raise_if_any(InputError)
    assert base is not None
    merged = load(settings)
    write_model_folder(merged.model, merged.tokenizer, merged_card(adapter, shown_name(base), dtype), out)
    if (adapter / GENERATION_FILE).is_file():
        shutil.copyfile(adapter / GENERATION_FILE, out / GENERATION_FILE)
    return MergedModel(out, base, dtype, merged.model.num_parameters())


def _start_model(adapter: Path) -> str:
    """Return the name of an adapter's start model.

    Raises:
        ConfigError: If the folder holds no adapter.
        ModelError: If its configuration cannot be read.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise ConfigError(
            f"{adapter}: holds no adapter (adapter_config.json). Give the folder that PEFT or `securetune train` with "
            "tune: lora wrote."
        )
    base = adapter_base(find_model(str(adapter)))
    if base is None:
        raise ConfigError(f"{adapter}: holds a whole model (config.json) besides an adapter. Which of them is meant?")
    if not (adapter / _WEIGHTS).is_file():
        raise ConfigError(f"{adapter}: its weights must be safetensors; {_WEIGHTS} is missing")
    return base


def _require_unquantized(base: str) -> None:
    if is_quantized(ModelSettings(name=base)):
        raise ModelError(
            f"{base}: is quantized, and merging into rounded weights would change the adapter's effect. Name the model "
            "in full precision in `base_model_name_or_path` of adapter_config.json."
        )


def merged_card(adapter: Path, base: str, dtype: str) -> str:
    """Return the model card: what was merged into what, and the adapter's own card."""
    with open(adapter / _WEIGHTS, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: transformers",
        "tags: [securetune, merged]",
        "---",
        "",
        f"# {base}, with an adapter merged into it",
        "",
        f"Start model: `{base}`. Adapter: `{adapter.name}`, SHA-256 of its weights `{digest}`. Precision: {dtype}.",
        "",
        "**This is no safety guarantee.** What the adapter did to the start model's refusals must be measured "
        "(`securetune evaluate`), and here too if the weights were rounded.",
        "",
        *own_card(adapter / "README.md", "The adapter's own card"),
    ]
    return "\n".join(lines)
