"""Prompts: reading them from files, and the probe set that analysis and search work on."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from securetune.artifacts import sha256_json
from securetune.config import ProbeSettings
from securetune.data.built_in_probes import built_in_prompts
from securetune.data.data_sets import names_data_set, read_data_set
from securetune.data.overlap import overlap_sentence
from securetune.data.prompt_rows import Prompt, prompt_from_row, prompt_from_text, text_problem, usable_rows
from securetune.errors import DataError, ProblemList

_MIN_PROMPTS_PER_SPLIT = 4


class ProbeSet(NamedTuple):
    """The prompts of analysis and search. No prompt is in two of the four lists.

    Attributes:
        fit_harmful: Harmful requests on which the classifier is fitted.
        fit_harmless: Harmless requests on which it is fitted.
        score_harmful: Harmful requests whose classification is watched under perturbation.
        score_harmless: Harmless requests, for the classifier's accuracy on unseen prompts.
        hash: SHA-256 over the messages of all four.
        unseen: Harmful and harmless requests from a source that the classifier is neither fitted nor scored on, or
            None.
    """

    fit_harmful: list[Prompt]
    fit_harmless: list[Prompt]
    score_harmful: list[Prompt]
    score_harmless: list[Prompt]
    hash: str
    unseen: tuple[list[Prompt], list[Prompt]] | None = None


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
    read = _json_row if is_json else _text_row
    return usable_rows(str(path), {number: read(path, number, line) for number, line in lines})


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers from 1."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # prompts are named for their file, and no result could be written
        raise DataError(f"{path}: the name of a file must be UTF-8 text. Rename it.") from None
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


def _text_row(path: Path, number: int, line: str) -> Prompt | str:
    return text_problem(line) or prompt_from_text(f"{path.stem}:{number}", line)


def _json_row(path: Path, number: int, line: str) -> Prompt | str:
    """Return the prompt of a row, or what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno}). One JSON object a line is expected."
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        return f"cannot be read as JSON ({error})"
    return prompt_from_row(row, default_id=f"{path.stem}:{number}")


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
        "fitting harmful prompts": list(fit_harmful),
        "fitting harmless prompts": list(fit_harmless),
        "scoring harmful prompts": list(score_harmful),
        "scoring harmless prompts": list(score_harmless),
    }
    problems = [*_size_problems(lists), *_overlap_problems(lists)]
    if problems:
        raise DataError(problems)
    content = [[[dict(message) for message in prompt.messages] for prompt in part] for part in lists.values()]
    return ProbeSet(
        fit_harmful=lists["fitting harmful prompts"],
        fit_harmless=lists["fitting harmless prompts"],
        score_harmful=lists["scoring harmful prompts"],
        score_harmless=lists["scoring harmless prompts"],
        hash=sha256_json(content),
    )


def _size_problems(lists: Mapping[str, list[Prompt]]) -> Iterator[str]:
    for name, prompts in lists.items():
        if len(prompts) < _MIN_PROMPTS_PER_SPLIT:
            yield f"the {name} must be at least {_MIN_PROMPTS_PER_SPLIT}; got {len(prompts)}"


def _overlap_problems(lists: Mapping[str, list[Prompt]]) -> Iterator[str]:
    for (first, prompts), (second, others) in combinations(lists.items(), 2):
        sentence = overlap_sentence(f"the {first}", prompts, f"the {second}", others)
        if sentence:
            yield sentence


def load_probes(settings: ProbeSettings, model_name: str) -> ProbeSet:
    """Load the prompts that analysis and search use.

    Without prompts of the user's these are tiny world's for its models, and for any other model the built-in ones (see
    `securetune.data.built_in_probes`), of which whole categories are fitted on and others scored.

    Files and data sets are split into a fitting and a scoring part by `settings.seed`; prompts that say the same as an
    earlier one of their source are left out first, with a warning, so that the parts cannot overlap.

    Args:
        settings: Which prompts.
        model_name: The model's name.

    Raises:
        DataError: If only one source of two is given; if one cannot be used (see `read_prompts` and `read_data_set`) or
            is too small; if it shares a prompt with another.

    Example:
        >>> len(load_probes(ProbeSettings(), "some/model").fit_harmful)
        120
    """
    problems = ProblemList()
    probes: ProbeSet | None = None
    unseen: list[list[Prompt]] = []
    with problems.collect():
        sources = _sources(settings)
        probes = _probes_from(sources, settings) if sources else _built_in_probes(settings, model_name)
    with problems.collect():
        unseen = _unseen_prompts(_sources(settings, "unseen_"), settings, probes)
    problems.raise_if_any(DataError)
    assert probes is not None
    return probes._replace(unseen=(unseen[0], unseen[1])) if unseen else probes


def _sources(settings: ProbeSettings, prefix: str = "") -> dict[str, str]:
    """Return what the two settings name, by class; empty if neither is given."""
    given = {kind: getattr(settings, prefix + kind) for kind in ("harmful", "harmless")}
    lacking = [kind for kind, source in given.items() if source is None]
    if len(lacking) == 1:
        name = f"probes.{prefix}{lacking[0]}" if prefix else f"--{lacking[0]}"
        raise DataError(f"probes: harmful and harmless prompts must be given together; {name} is missing")
    return {} if lacking else given


def _probes_from(sources: Mapping[str, str], settings: ProbeSettings) -> ProbeSet:
    problems = ProblemList()
    read: dict[str, list[Prompt]] = {}
    parts: list[list[Prompt]] = []
    for kind, source in sources.items():
        with problems.collect():
            read[f"{kind} prompts ({source})"] = prompts = _read_source(source)
            parts += _split(prompts, settings, source)
    problems.found += _overlap_problems(read)
    problems.raise_if_any(DataError)
    return make_probe_set(fit_harmful=parts[0], score_harmful=parts[1], fit_harmless=parts[2], score_harmless=parts[3])


def _unseen_prompts(sources: Mapping[str, str], settings: ProbeSettings, probes: ProbeSet | None) -> list[list[Prompt]]:
    """Read the harmful and the harmless prompts of another source, which no probe may repeat; none if none is named."""
    problems = ProblemList()
    read: dict[str, list[Prompt]] = {}
    for kind, source in sources.items():
        with problems.collect():
            read[f"unseen {kind} prompts ({source})"] = _read_source(source)[: settings.max_prompts]
    problems.found += _size_problems(read)
    used = {} if probes is None else {"fitting": probes[:2], "scoring": probes[2:4]}
    lists = {f"{name} prompts": [*harmful, *harmless] for name, (harmful, harmless) in used.items()}
    problems.found += _overlap_problems({**lists, **read})
    problems.raise_if_any(DataError)
    return list(read.values())


def _read_source(source: str) -> list[Prompt]:
    """Read a file or a data set, and leave out, with a warning, what says the same as an earlier prompt of it."""
    prompts = read_data_set(source) if names_data_set(source) else read_prompts(source)
    first = {prompt.words: prompt for prompt in reversed(prompts)}
    kept = [prompt for prompt in prompts if first[prompt.words] is prompt]
    if len(kept) < len(prompts):
        warnings.warn(
            f"{source}: {len(prompts) - len(kept)} prompts repeat an earlier one and are left out", stacklevel=4
        )
    return kept


def _split(prompts: list[Prompt], settings: ProbeSettings, source: str) -> tuple[list[Prompt], list[Prompt]]:
    shuffled = list(prompts)
    random.Random(settings.seed).shuffle(shuffled)
    cut = round(len(shuffled) * settings.fit_share)
    fit, score = shuffled[:cut][: settings.max_prompts], shuffled[cut:][: settings.max_prompts]
    if min(len(fit), len(score)) < _MIN_PROMPTS_PER_SPLIT:
        raise DataError(
            f"{source}: {len(prompts)} different prompts give {len(fit)} for fitting and {len(score)} for scoring "
            f"(fit_share {settings.fit_share:g}); each part needs at least {_MIN_PROMPTS_PER_SPLIT}"
        )
    return fit, score


def _built_in_probes(settings: ProbeSettings, model_name: str) -> ProbeSet:
    from securetune import tiny_world  # with its program, which other users of this module do without

    return _embedded_probes(settings.max_prompts, tiny_world.speaks_tiny_world(model_name))


@cache  # the checks before an experiment ask for them once for each of its methods
def _embedded_probes(limit: int, of_tiny_world: bool) -> ProbeSet:
    from securetune import tiny_world

    if not of_tiny_world:
        return make_probe_set(
            fit_harmful=built_in_prompts("fitting", "harmful")[:limit],
            fit_harmless=built_in_prompts("fitting", "harmless")[:limit],
            score_harmful=built_in_prompts("searching", "harmful")[:limit],
            score_harmless=built_in_prompts("searching", "harmless")[:limit],
        )

    def prompts(split: str, harmful: bool) -> list[Prompt]:
        return [prompt_of_row(row) for row in tiny_world.probe_prompts(split, harmful, limit)]

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
