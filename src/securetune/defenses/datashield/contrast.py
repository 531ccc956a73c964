"""The answers that tell compliance from refusal, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from securetune import tiny_world
from securetune.artifacts import sha256_json
from securetune.config import ProbeSettings
from securetune.data.built_in_answers import exchange
from securetune.data.prompts import Prompt, load_probes, prompt_from_text
from securetune.defenses.datashield.activations import AnswerTokens, answer_tokens
from securetune.defenses.own_answers import end_tokens, own_answers
from securetune.errors import ConfigError, DataError
from securetune.models import ChatModel
from securetune.models.rendering import prompt_token_ids

LEAST_ANSWERS = 8
"""Of each kind; each half of them gives a direction that is tried on the other half."""

_TINY_WORLD_PAIRS = 128
_MOST_PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class Contrast:
    """Requests whose answers comply, and requests whose answers refuse.

    Attributes:
        accepted: Requests that are answered.
        refused: Requests that are refused.
        answers: An answer to each of both, or None: the start model's own.
        source: Where they come from, in a few words.
    """

    accepted: Sequence[Prompt]
    refused: Sequence[Prompt]
    answers: tuple[Sequence[str], Sequence[str]] | None
    source: str

    @property
    def hash(self) -> str:
        """Hash of the requests and of the answers that are known."""
        requests = [[[dict(message) for message in each.messages] for each in part] for part in self.requests]
        return sha256_json([requests, [list(part) for part in self.answers or ()]])

    @property
    def requests(self) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
        """Those that are answered, and those that are refused."""
        return self.accepted, self.refused


class ContrastTokens(NamedTuple):
    """The conversations as tokens.

    Attributes:
        accepted: With answers that comply.
        refused: With refusals.
    """

    accepted: list[AnswerTokens]
    refused: list[AnswerTokens]


def load_contrast(model_name: str, probes: ProbeSettings, pairs: str | None) -> Contrast:
    """Return the requests, and the answers if they are known before the model is loaded.

    Args:
        model_name: The start model's.
        probes: Harmful and harmless requests of the user's, or none, and how many of each may be used.
        pairs: File of harmful requests with both answers, or None.

    Raises:
        DataError: If a file cannot be read or holds too few.
    """
    most = probes.max_prompts
    if pairs is not None:
        return _of_pairs(read_pairs(Path(pairs))[:most], Path(pairs).name)
    if probes.harmful is None and probes.harmless is None and tiny_world.speaks_tiny_world(model_name):
        count = min(most, _TINY_WORLD_PAIRS)
        return _of_pairs(tiny_world.answered_and_refused(count), "tiny world's exact answers")
    found = load_probes(probes, model_name)
    harmful, harmless = found.fit_harmful, found.fit_harmless
    if probes.harmful is not None:  # a user's prompts were split for others to be scored on; nothing is scored here
        harmful, harmless = [*harmful, *found.score_harmful], [*harmless, *found.score_harmless]
    return Contrast(harmless[:most], harmful[:most], None, "the start model's own answers")


def _of_pairs(pairs: Sequence[tuple[str, str, str]], source: str) -> Contrast:
    if len(pairs) < LEAST_ANSWERS:
        raise DataError(f"{source}: must hold at least {LEAST_ANSWERS} requests; got {len(pairs)}")
    requests = [prompt_from_text(f"pair:{place}", pair[0]) for place, pair in enumerate(pairs, start=1)]
    answers = [pair[1] for pair in pairs], [pair[2] for pair in pairs]
    return Contrast(requests, requests, answers, source)


def read_pairs(path: Path) -> list[tuple[str, str, str]]:
    """Read JSON lines with the texts `prompt`, `accepted` and `refused`.

    Raises:
        DataError: If the file cannot be read, or with a sentence for each bad row.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    read = {number: _pair(line) for number, line in enumerate(lines, start=1) if line.strip()}
    problems = [f"{path}: row {number}: {row}" for number, row in read.items() if isinstance(row, str)]
    if problems:
        more = len(problems) - _MOST_PROBLEMS_SHOWN
        raise DataError(problems[:_MOST_PROBLEMS_SHOWN] + [f"{path}: {more} more bad rows"] * (more > 0))
    return [row for row in read.values() if not isinstance(row, str)]


def _pair(line: str) -> tuple[str, str, str] | str:
    """Return the pair of a row, or what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"not JSON ({error})"
    given = [row.get(key) for key in ("prompt", "accepted", "refused")] if isinstance(row, dict) else []
    texts = [text for text in given if isinstance(text, str) and text.strip()]
    if len(texts) != 3:
        return "must be an object with the texts `prompt`, `accepted` and `refused`, none of them empty"
    return texts[0], texts[1], texts[2]


def contrast_tokens(
    chat: ChatModel, contrast: Contrast, max_length: int, max_new_tokens: int, batch_size: int
) -> ContrastTokens:
    """Return the conversations as tokens; the model answers where no answer is known.

    Args:
        chat: The start model.
        contrast: The requests.
        max_length: Tokens a conversation.
        max_new_tokens: Longest own answer.
        batch_size: Requests generated together.

    Raises:
        ConfigError: If too few conversations have an answer.
    """
    if contrast.answers is None:
        found = [_own(chat, part, max_length, max_new_tokens, batch_size) for part in contrast.requests]
    else:
        parts = zip(contrast.requests, contrast.answers, strict=True)
        found = [_given(chat, requests, answers, max_length) for requests, answers in parts]
    for kind, rows in zip(("accepted", "refused"), found, strict=True):
        if len(rows) < LEAST_ANSWERS:
            raise ConfigError(
                f"datashield: {contrast.source}: {len(rows)} {kind} answers are left within max_length {max_length}; "
                f"at least {LEAST_ANSWERS} are needed"
            )
    return ContrastTokens(*found)


def _own(
    chat: ChatModel, requests: Sequence[Prompt], max_length: int, max_new_tokens: int, batch_size: int
) -> list[AnswerTokens]:
    messages = [request.messages for request in requests]
    prompts = prompt_token_ids(chat.tokenizer, messages)
    ends = end_tokens(chat.model)
    found = []
    for prompt, row in zip(
        prompts, own_answers(chat.model, chat.tokenizer, messages, max_new_tokens, batch_size), strict=True
    ):
        said = row[:-1] if row[-1] in ends else row
        if len(prompt) < len(said[:max_length]):
            found.append(AnswerTokens(said[:max_length], len(prompt)))
    return found


def _given(chat: ChatModel, requests: Sequence[Prompt], answers: Sequence[str], max_length: int) -> list[AnswerTokens]:
    rows = [exchange(request.text, answer) for request, answer in zip(requests, answers, strict=True)]
    return [row for row in answer_tokens(chat.tokenizer, rows, max_length) if row is not None]
