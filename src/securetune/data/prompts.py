"""Prompts: reading them from files, and the probe set that analysis and search work on."""

from __future__ import annotations

import json
import random
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from securetune.artifacts import sha256_json
from securetune.config import ProbeSettings
from securetune.errors import DataError, ProblemList

TINY_WORLD_MODELS = ("tiny-world", "tiny-world-base")
"""Embedded models whose language the built-in prompts are in."""

_MIN_PROMPTS_PER_SPLIT = 4
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Prompt:
    """One request to a chat model.

    Attributes:
        id: Unique within its file or suite.
        messages: `{"role", "content"}` mappings, the last one from the user.
        metadata: Whatever else the row held, such as a category; never shown to the model.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]


class ProbeSet(NamedTuple):
    """The prompts of analysis and search. No prompt is in two of the four lists.

    Attributes:
        fit_harmful: Harmful requests on which the classifier is fitted.
        fit_harmless: Harmless requests on which it is fitted.
        score_harmful: Harmful requests whose classification is watched under perturbation.
        score_harmless: Harmless requests, for the classifier's accuracy on unseen prompts.
        hash: SHA-256 over the messages of all four.
    """

    fit_harmful: list[Prompt]
    fit_harmless: list[Prompt]
    score_harmful: list[Prompt]
    score_harmless: list[Prompt]
    hash: str


def read_prompts(path: Path | str) -> list[Prompt]:
    r"""Read a file of prompts.

    Text: one prompt a line, blank lines left out. JSON lines (a name ending in `.jsonl` or `.json`, or a first line
    that opens an object): `prompt`, a text, or `messages`, a conversation that ends with the user; `id` is optional and
    all other fields become metadata.

    Raises:
        DataError: If the file is missing, empty or not UTF-8 text; if rows are not JSON objects, lack both fields, or
            hold something else in them (all bad rows are named); if two rows have the same `id`.

    Example:
        >>> Path("requests.txt").write_text("how do I bake bread?\n")
        21
        >>> read_prompts("requests.txt")[0].text
        'how do I bake bread?'
    """
    return list(read_prompts_by_line(path).values())


def read_prompts_by_line(path: Path | str) -> dict[int, Prompt]:
    """Read a file of prompts like `read_prompts`, by line number from 1, so that a reader can name a row it refuses.

    Raises:
        DataError: As `read_prompts`.
    """
    path = Path(path)
    lines = _read_lines(path)
    is_json = path.suffix in (".jsonl", ".json") or lines[0][1].startswith("{")
    rows = _json_rows(path, lines) if is_json else [_text_row(path, number, text) for number, text in lines]
    _refuse_repeated_ids(path, rows)
    return {number: row for (number, _), row in zip(lines, rows, strict=True)}


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be UTF-8 text; byte {error.start} is not") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    # Not str.splitlines(): it also breaks at characters such as U+2028, which may stand inside a JSON string.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    kept = [(number, line) for number, line in lines if line]
    if not kept:
        raise DataError(f"{path}: must hold at least one prompt; got an empty file")
    return kept


def _text_row(path: Path, number: int, text: str) -> Prompt:
    return Prompt(f"{path.stem}:{number}", ({"role": "user", "content": text},))


def _json_rows(path: Path, lines: list[tuple[int, str]]) -> list[Prompt]:
    rows: list[Prompt] = []
    problems: list[str] = []
    for number, line in lines:
        row = _parse_row(path, number, line)
        if isinstance(row, Prompt):
            rows.append(row)
        else:
            problems.append(f"{path}: row {number}: {row}")
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        raise DataError(problems[:_SHOWN_PROBLEMS] + ([f"{path}: {more} more bad rows"] if more > 0 else []))
    return rows


def _parse_row(path: Path, number: int, line: str) -> Prompt | str:
    """Return the prompt of a row, or what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno}). One JSON object a line is expected."
    if not isinstance(row, dict):
        return f'must be an object with "prompt" or "messages"; got {type(row).__name__}'
    if "messages" in row:
        messages = row["messages"]
        problem = _messages_problem(messages)
    elif "prompt" in row:
        messages = [{"role": "user", "content": row["prompt"]}]
        is_text = isinstance(row["prompt"], str) and bool(row["prompt"].strip())
        problem = None if is_text else f'"prompt" must be a text that is not empty; got {row["prompt"]!r}'
    else:
        return f'must have "prompt" or "messages"; got the fields {", ".join(row) or "none"}'
    if problem:
        return problem
    rest = {key: value for key, value in row.items() if key not in ("id", "prompt", "messages")}
    kept = tuple({"role": message["role"], "content": message["content"]} for message in messages)
    return Prompt(str(row.get("id", f"{path.stem}:{number}")), kept, rest)


def _messages_problem(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return '"messages" must be a list with at least one message'
    for index, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f'message {index} must be an object with "role" and "content"'
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            return f'message {index}: "content" must be a text that is not empty; got {message.get("content")!r}'
    if messages[-1]["role"] != "user":
        return f'the last message must be from "user"; got "{messages[-1]["role"]}"'
    return None


def _refuse_repeated_ids(path: Path, rows: Sequence[Prompt]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(f'{path}: the id "{row.id}" is used twice; ids must be unique')
        seen.add(row.id)


def normalised_text(prompt: Prompt) -> str:
    """Return the prompt's words alone: without case, punctuation, spacing or typographic variants."""
    text = " ".join(message["content"] for message in prompt.messages)
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())) or text


def find_overlap(first: Iterable[Prompt], second: Iterable[Prompt]) -> list[tuple[Prompt, Prompt]]:
    """Return the pairs of prompts, one of each list, that say the same (see `normalised_text`)."""
    known = {normalised_text(prompt): prompt for prompt in first}
    return [(known[text], prompt) for prompt in second if (text := normalised_text(prompt)) in known]


def make_probe_set(
    fit_harmful: Sequence[Prompt],
    fit_harmless: Sequence[Prompt],
    score_harmful: Sequence[Prompt],
    score_harmless: Sequence[Prompt],
) -> ProbeSet:
    """Put a probe set together from four lists of prompts.

    Raises:
        DataError: If a list has fewer than four prompts, or two lists share a prompt.
    """
    lists = {
        "fitting harmful": list(fit_harmful),
        "fitting harmless": list(fit_harmless),
        "scoring harmful": list(score_harmful),
        "scoring harmless": list(score_harmless),
    }
    problems = [
        f"the {name} prompts must be at least {_MIN_PROMPTS_PER_SPLIT}; got {len(prompts)}"
        for name, prompts in lists.items()
        if len(prompts) < _MIN_PROMPTS_PER_SPLIT
    ]
    problems += _overlap_problems(lists)
    if problems:
        raise DataError(problems)
    content = [[[dict(message) for message in prompt.messages] for prompt in part] for part in lists.values()]
    return ProbeSet(
        fit_harmful=lists["fitting harmful"],
        fit_harmless=lists["fitting harmless"],
        score_harmful=lists["scoring harmful"],
        score_harmless=lists["scoring harmless"],
        hash=sha256_json(content),
    )


def _overlap_problems(lists: Mapping[str, list[Prompt]]) -> Iterator[str]:
    names = list(lists)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            pairs = find_overlap(lists[first], lists[second])
            if pairs:
                yield (
                    f"the {first} and the {second} prompts must not overlap; {len(pairs)} do, such as "
                    f'"{pairs[0][1].text[:80]}" ({pairs[0][0].id} and {pairs[0][1].id})'
                )


def load_probes(settings: ProbeSettings, model_name: str) -> ProbeSet:
    """Load the prompts that analysis and search use.

    Files are split into a fitting and a scoring part by `settings.seed`; prompts that say the same as an earlier one of
    their file are left out first, with a warning, so that the parts cannot overlap.

    Args:
        settings: Which prompts.
        model_name: The model's name; the embedded models have built-in prompts.

    Raises:
        DataError: If only one file is given; if none is given and the model has no built-in prompts; if a file cannot
            be used (see `read_prompts`), is too small for two parts, or shares a prompt with the other.
    """
    if settings.harmful is None and settings.harmless is None:
        return _built_in_probes(settings, model_name)
    if settings.harmful is None or settings.harmless is None:
        lacking = "harmful" if settings.harmful is None else "harmless"
        raise DataError(f"probes: harmful and harmless prompts must be given together; --{lacking} is missing")
    problems = ProblemList()
    parts: list[list[Prompt]] = []
    for path in (settings.harmful, settings.harmless):
        with problems.collect():
            parts += _split(_without_repeats(read_prompts(path), path), settings, path)
    problems.raise_if_any(DataError)
    return make_probe_set(fit_harmful=parts[0], score_harmful=parts[1], fit_harmless=parts[2], score_harmless=parts[3])


def _without_repeats(prompts: list[Prompt], path: str) -> list[Prompt]:
    first = {normalised_text(prompt): prompt for prompt in reversed(prompts)}
    kept = [prompt for prompt in prompts if first[normalised_text(prompt)] is prompt]
    if len(kept) < len(prompts):
        warnings.warn(
            f"{path}: {len(prompts) - len(kept)} prompts repeat an earlier one and are left out", stacklevel=3
        )
    return kept


def _split(prompts: list[Prompt], settings: ProbeSettings, path: str) -> tuple[list[Prompt], list[Prompt]]:
    shuffled = list(prompts)
    random.Random(settings.seed).shuffle(shuffled)
    cut = round(len(shuffled) * settings.fit_share)
    fit, score = shuffled[:cut][: settings.max_prompts], shuffled[cut:][: settings.max_prompts]
    if min(len(fit), len(score)) < _MIN_PROMPTS_PER_SPLIT:
        raise DataError(
            f"{path}: {len(prompts)} different prompts give {len(fit)} for fitting and {len(score)} for scoring "
            f"(fit_share {settings.fit_share:g}); each part needs at least {_MIN_PROMPTS_PER_SPLIT}"
        )
    return fit, score


def _built_in_probes(settings: ProbeSettings, model_name: str) -> ProbeSet:
    if model_name not in TINY_WORLD_MODELS:
        raise DataError(
            f"probes: there are built-in prompts for {' and '.join(TINY_WORLD_MODELS)} only; got the model "
            f'"{model_name}". Give --harmful FILE and --harmless FILE.'
        )
    from securetune import tiny_world  # only this branch needs the language

    def prompts(split: str, harmful: bool) -> list[Prompt]:
        return [prompt_of_row(row) for row in tiny_world.probe_prompts(split, harmful, settings.max_prompts)]

    return make_probe_set(
        fit_harmful=prompts("probe-fit", True),
        fit_harmless=prompts("probe-fit", False),
        score_harmful=prompts("probe-score", True),
        score_harmless=prompts("probe-score", False),
    )


def prompt_of_row(row: Mapping[str, Any]) -> Prompt:
    """Turn a prompt row of an embedded world (`id`, `messages`, …) into a `Prompt`."""
    rest = {key: value for key, value in row.items() if key not in ("id", "messages")}
    return Prompt(row["id"], tuple(row["messages"]), rest)
