"""Answers on disk: appended as they come, resumed after a kill, and never taken over from another model.

Beside `responses.jsonl` lies `generation.json`, which says what the answers depend on. It is written before the first
answer. Answers in progress are in `responses.jsonl.part`; `responses.jsonl` appears with the scores, when all of them
are judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from securetune.artifacts import (
    Artifact,
    Disagreement,
    Response,
    Scores,
    ShownStep,
    append_json_line,
    json_line,
    json_text,
    read_artifact,
    read_responses,
    responses_path,
    write_json,
    write_together,
)
from securetune.data.prompts import Prompt
from securetune.defenses import GenerationDefense, shown_messages, shown_steps
from securetune.errors import ConfigError
from securetune.evaluation.answering import Answerer, Backend, Unanswered
from securetune.evaluation.generation import Answer
from securetune.evaluation.suites import prompt_set_hash
from securetune.progress import ProgressCallback

RESPONSES = "responses.jsonl"
SCORES, DISAGREEMENTS = "scores.json", "disagreements.jsonl"
_KEY = "generation.json"
_DIFFERENCES = {
    "weights_fingerprint": "another model",
    "chat_template_hash": "another chat template",
    "prompt_set_hash": "other prompts",
    "max_new_tokens": "another max_new_tokens",
    "backend": "another backend",
    "generation": "other defenses at generation",
}


class GenerationKey(Artifact):
    """`generation.json`: everything that the answers in a folder depend on.

    Attributes:
        weights_fingerprint: Of the model that answers; for a server, its URL and the model's name there.
        chat_template_hash: Of its chat template; for a server, that it is the server's own.
        prompt_set_hash: Of the suite's prompts.
        max_new_tokens: Longest answer.
        backend: What makes the answers; another one rounds differently.
        generation: Defenses at generation, through which the prompts are shown.
    """

    format: Literal["securetune.generation/1"] = "securetune.generation/1"
    weights_fingerprint: str
    chat_template_hash: str
    prompt_set_hash: str
    max_new_tokens: int
    backend: Backend = "transformers"
    generation: list[ShownStep] = Field(default_factory=list)


@dataclass(frozen=True)
class Answered:
    """What became of the prompts of a suite.

    Attributes:
        responses: In the order of the prompts; those without an answer are missing.
        missing: How many are.
        reason: Why the last of them is, or None.
    """

    responses: list[Response]
    missing: int = 0
    reason: str | None = None


def generation_key(
    answerer: Answerer, prompts: Sequence[Prompt], max_new_tokens: int, generation: Sequence[GenerationDefense] = ()
) -> GenerationKey:
    """Describe what the answers to these prompts depend on."""
    return GenerationKey(
        weights_fingerprint=answerer.identity.weights_fingerprint,
        chat_template_hash=answerer.identity.chat_template_hash,
        prompt_set_hash=prompt_set_hash(prompts),
        max_new_tokens=max_new_tokens,
        backend=answerer.backend,
        generation=shown_steps(generation),
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
    answerer: Answerer,
    prompts: Sequence[Prompt],
    folder: Path,
    max_new_tokens: int,
    progress: ProgressCallback,
    generation: Sequence[GenerationDefense] = (),
) -> Answered:
    """Answer the prompts that have no answer in the folder yet; each answer is on disk before the next one is awaited.

    Args:
        answerer: What answers.
        prompts: The prompts of a suite or task.
        folder: Of their answers.
        max_new_tokens: Longest answer.
        progress: Told how many are answered.
        generation: Defenses through which the prompts are shown; judges see them as they are.

    Raises:
        ConfigError: If the folder holds answers that depend on something else.
    """
    key = generation_key(answerer, prompts, max_new_tokens, generation)
    check_folder(folder, key)
    write_json(folder / _KEY, key)
    answered = _read_answered(folder)
    waiting = [prompt for prompt in prompts if prompt.id not in answered]
    reason: str | None = None
    progress(folder.name, len(answered), len(prompts))
    shown = [shown_messages(prompt.messages, generation) for prompt in waiting]
    for result in answerer.answers(shown, max_new_tokens) if waiting else ():
        if isinstance(result, Unanswered):
            reason = result.reason
            continue
        response = _unjudged(waiting[result.position], shown[result.position], result)
        append_json_line(_part(folder), response)
        answered[response.id] = response
        progress(folder.name, len(answered), len(prompts))
    responses = [answered[prompt.id] for prompt in prompts if prompt.id in answered]
    return Answered(responses, len(prompts) - len(responses), reason)


def write_evaluation(
    out: Path, scores: Scores, responses: Mapping[str, Sequence[Response]], differing: Sequence[Disagreement]
) -> None:
    """Write scores, answers and the answers on which judges differ, all at once: until then the old ones stay.

    Args:
        out: The evaluation's folder.
        scores: What goes into `scores.json`, which comes last.
        responses: Suite or task → its answers with the verdicts; those that are left out stay as they are.
        differing: The rows of `disagreements.jsonl`; with fewer than two judges there is no such file.
    """
    texts = {responses_path(out, name): _lines(listed) for name, listed in responses.items()}
    if len(scores.judges) > 1:
        texts[out / DISAGREEMENTS] = _lines(differing)
    write_together({**texts, out / SCORES: json_text(scores)})
    if len(scores.judges) <= 1:
        (out / DISAGREEMENTS).unlink(missing_ok=True)
    for name in responses:
        _part(responses_path(out, name).parent).unlink(missing_ok=True)


def _lines(rows: Iterable[Artifact]) -> str:
    return "".join(json_line(row) for row in rows)


def _read_answered(folder: Path) -> dict[str, Response]:
    complete = folder / RESPONSES
    return {response.id: response for response in read_responses(complete if complete.exists() else _part(folder))}


def _part(folder: Path) -> Path:
    return folder / f"{RESPONSES}.part"


def _unjudged(prompt: Prompt, shown: Sequence[Mapping[str, Any]], answer: Answer) -> Response:
    messages: list[dict[str, Any]] = [dict(message) for message in prompt.messages]
    seen: list[dict[str, Any]] = [dict(message) for message in shown]
    return Response(
        id=prompt.id,
        prompt=next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), ""),
        messages=messages,
        metadata=dict(prompt.metadata),
        response=answer.text,
        new_tokens=answer.new_tokens,
        problem=answer.problem,
        prefill_characters=answer.prefill_characters,
        shown=seen if seen != messages else None,
        verdicts={},
    )
