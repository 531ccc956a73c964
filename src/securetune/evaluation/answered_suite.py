"""Answers on disk: appended as they come, resumed after a kill, and never taken over from another model.

Beside `responses.jsonl` lies `generation.json`, which says what the answers depend on. It is written before the first
answer. Answers in progress are in `responses.jsonl.part`; `responses.jsonl` appears when all of them are judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from securetune.artifacts import (
    Artifact,
    Response,
    append_json_line,
    read_artifact,
    read_json_lines,
    write_json,
    write_text,
)
from securetune.data.prompts import Prompt
from securetune.errors import ConfigError
from securetune.evaluation.generation import Answer, generate_answers
from securetune.evaluation.suites import prompt_set_hash
from securetune.models import ChatModel
from securetune.progress import ProgressCallback

RESPONSES = "responses.jsonl"
_KEY = "generation.json"
_DIFFERENCES = {
    "weights_fingerprint": "another model's weights",
    "chat_template_hash": "another chat template",
    "prompt_set_hash": "other prompts",
    "max_new_tokens": "another max_new_tokens",
}


class GenerationKey(Artifact):
    """`generation.json`: everything that the answers in a folder depend on.

    Attributes:
        weights_fingerprint: Of the model that answers.
        chat_template_hash: Of its chat template.
        prompt_set_hash: Of the suite's prompts.
        max_new_tokens: Longest answer.
    """

    format: Literal["securetune.generation/1"] = "securetune.generation/1"
    weights_fingerprint: str
    chat_template_hash: str
    prompt_set_hash: str
    max_new_tokens: int


def generation_key(model: ChatModel, prompts: Sequence[Prompt], max_new_tokens: int) -> GenerationKey:
    """Describe what the answers of a model to these prompts depend on."""
    return GenerationKey(
        weights_fingerprint=model.identity.weights_fingerprint,
        chat_template_hash=model.identity.chat_template_hash,
        prompt_set_hash=prompt_set_hash(prompts),
        max_new_tokens=max_new_tokens,
    )


def check_folder(folder: Path, key: GenerationKey) -> None:
    """Refuse a folder that holds answers which depend on something else.

    Raises:
        ConfigError: If its key differs, or there are answers without a key.
        ArtifactError: If its key cannot be read.
    """
    path = folder / _KEY
    if not path.exists():
        if (folder / RESPONSES).exists() or _part(folder).exists():
            raise ConfigError(f"{folder}: holds answers of unknown origin (no {_KEY}). Give another --out.")
        return
    found = read_artifact(path, GenerationKey)
    differences = [text for name, text in _DIFFERENCES.items() if getattr(found, name) != getattr(key, name)]
    if differences:
        raise ConfigError(f"{folder}: holds answers made with {' and '.join(differences)}. Give another --out.")


def answer_prompts(
    model: ChatModel,
    prompts: Sequence[Prompt],
    folder: Path,
    max_new_tokens: int,
    batch_size: int,
    progress: ProgressCallback,
) -> list[Response]:
    """Answer the prompts that have no answer in the folder yet, and return all answers in the order of the prompts.

    Raises:
        ConfigError: If the folder holds answers that depend on something else.
    """
    key = generation_key(model, prompts, max_new_tokens)
    check_folder(folder, key)
    write_json(folder / _KEY, key)
    answered = _read_answered(folder)
    waiting = [prompt for prompt in prompts if prompt.id not in answered]
    progress(folder.name, len(answered), len(prompts))
    if waiting:
        conversations = [prompt.messages for prompt in waiting]
        for answer in generate_answers(model, conversations, max_new_tokens, batch_size):
            response = _unjudged(waiting[answer.position], answer)
            append_json_line(_part(folder), response.model_dump(mode="json"))
            answered[response.id] = response
            progress(folder.name, len(answered), len(prompts))
    return [answered[prompt.id] for prompt in prompts]


def write_responses(folder: Path, responses: Sequence[Response]) -> None:
    """Write the judged answers of a suite, all at once."""
    rows = (json.dumps(response.model_dump(mode="json"), ensure_ascii=False) for response in responses)
    write_text(folder / RESPONSES, "".join(f"{row}\n" for row in rows))
    _part(folder).unlink(missing_ok=True)


def _read_answered(folder: Path) -> dict[str, Response]:
    complete = folder / RESPONSES
    rows = read_json_lines(complete if complete.exists() else _part(folder))
    return {row["id"]: Response.model_validate(row) for row in rows}


def _part(folder: Path) -> Path:
    return folder / f"{RESPONSES}.part"


def _unjudged(prompt: Prompt, answer: Answer) -> Response:
    messages: list[dict[str, Any]] = [dict(message) for message in prompt.messages]
    return Response(
        id=prompt.id,
        prompt=next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), ""),
        messages=messages,
        metadata=dict(prompt.metadata),
        response=answer.text,
        new_tokens=answer.new_tokens,
        problem=answer.problem,
        verdicts={},
    )
