"""One row for each way of using a defense on the data, and the files that they read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tiny_models import OBJECTS, tiny_conversations, tiny_prompts

from securetune.config import ChainStep
from securetune.data.conversations import Conversation


class DataCase(NamedTuple):
    """A defense on the data.

    Attributes:
        defense: Registered name.
        options: With which it changes 16 rows; `{folder}` stands for the folder of `write_files`.
        nothing: With which it changes nothing.
        rows: How many of 16 rows it leaves, the new ones counted.
    """

    defense: str
    options: dict[str, Any]
    nothing: dict[str, Any]
    rows: int


_SAMPLES = {"samples": "{folder}/samples.jsonl"}
_PAIRS = {"pairs": "{folder}/pairs.jsonl", "batch_size": 5}
_REQUESTS = {"harmful": "{folder}/harmful.txt", "harmless": "{folder}/harmless.txt", "max_new_tokens": 3}

CASES = {
    "safety-mix": DataCase("safety-mix", {"count": 5}, {"count": 0}, 21),
    "safety-mix-share": DataCase("safety-mix", {"share": 0.2}, {"share": 0.0}, 20),
    "safety-mix-file": DataCase("safety-mix", {"count": 3, **_SAMPLES}, {"count": 0, **_SAMPLES}, 19),
    "malicious-mix": DataCase("malicious-mix", {"count": 4, **_SAMPLES}, {"count": 0, **_SAMPLES}, 20),
    "random-drop": DataCase("random-drop", {"drop_fraction": 0.25}, {"drop_fraction": 0.0}, 12),
    "random-drop-count": DataCase("random-drop", {"drop_count": 3}, {"drop_count": 0}, 13),
    "datashield": DataCase("datashield", {"drop_fraction": 0.25, **_PAIRS}, {"drop_fraction": 0.0, **_PAIRS}, 12),
    "datashield-own-answers": DataCase(
        "datashield",
        {"drop_count": 2, "layer": 1, **_REQUESTS},
        {"drop_count": 0, "layer": 1, **_REQUESTS},
        14,
    ),
}
"""Case → the defense and its options."""

EXCHANGES = [
    (f"how do I steal a {thing} ?", f"sure then take the {thing}", f"sorry I can not {thing}") for thing in OBJECTS
]
"""Harmful requests in the tiny model's words, an answer that complies, and one that refuses."""


def rows_of_a_user() -> list[Conversation]:
    """Return 16 rows."""
    return list(tiny_conversations(objects=4))


def write_files(folder: Path) -> Path:
    """Write samples, pairs and requests; return the folder."""
    samples = [{"prompt": request, "completion": refused} for request, _, refused in EXCHANGES]
    pairs = [{"prompt": request, "accepted": yes, "refused": no} for request, yes, no in EXCHANGES]
    for name, rows in (("samples", samples), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for kind in ("harmful", "harmless"):
        (folder / f"{kind}.txt").write_text("\n".join(prompt.text for prompt in tiny_prompts(kind, 0, 9)))
    return folder


def with_files(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fill in where the files are."""
    return {key: value.format(folder=folder) if isinstance(value, str) else value for key, value in options.items()}


def chain(*steps: tuple[str, dict[str, Any]]) -> tuple[ChainStep, ...]:
    """Return the steps as a configuration has them."""
    return tuple(ChainStep(name=name, options=options) for name, options in steps)


def texts(rows: Sequence[Conversation]) -> list[str]:
    """Return the rows as texts that can be compared."""
    return [json.dumps(row) for row in rows]
