"""The training data, and the defenses on them that a configuration chains before the training (`training.before`)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from securetune.artifacts import DataPreparation, DataStep, ModelIdentity, environment, sha256_json, write_text
from securetune.config import ChainStep, ModelSettings, TrainingSettings, validate
from securetune.data.conversations import Conversation, conversations_hash, read_training_data
from securetune.data.prepared import RECORD_FILE, SCORES_FILE, PreparedData, read_prepared, write_prepared
from securetune.data.prompts import Prompt
from securetune.defenses import ChangedRows, DataContext, DataDefense, find_data_defense
from securetune.errors import ConfigError, InputError, ProblemList
from securetune.models import ChatModel, check_model, load
from securetune.progress import ProgressCallback, silent


def prepare_data(
    data: str | Path | Sequence[Conversation],
    before: Sequence[str | Mapping[str, object] | ChainStep],
    model: str | ModelSettings,
    folder: Path | None = None,
    progress: ProgressCallback | None = None,
) -> PreparedData:
    """Apply defenses to training data, such as for a script that trains with `SecureSFTTrainer`.

    Args:
        data: A file, the name of a data set, `tiny-world`, or conversations.
        before: The defenses in their order, as `training.before` takes them.
        model: The start model: its name decides which samples are built in, and `datashield` runs it.
        folder: Where to keep the result; what is there already, made from the same, is read. None: it is not kept.
        progress: Told how far it is.

    Raises:
        InputError: With every mistake found before anything is done; if the folder holds other data.

    Example:
        >>> len(prepare_data("tiny-world", [{"safety-mix": {"count": 100}}], "tiny-world").conversations)
        4100
    """
    steps = tuple(validate(TrainingSettings, {"before": list(before)}).before)
    settings = ModelSettings(name=model) if isinstance(model, str) else model
    problems = ProblemList()
    problems.found += check_model(settings)
    conversations: Sequence[Conversation] = ()
    shapes: Mapping[str, int] = {}
    with problems.collect():
        conversations, shapes = read_training_data(data) if isinstance(data, str | Path) else (data, {})
    with problems.collect():
        check_before(steps, settings, len(conversations) or None)
    problems.raise_if_any(InputError)
    return apply_before(steps, settings, conversations, shapes, folder, progress)


def check_before(steps: Sequence[ChainStep], model: ModelSettings, rows: int | None) -> list[DataDefense]:
    """Check defenses on the data before anything begins.

    Args:
        steps: The defenses in their order.
        model: The start model; its weights are not read.
        rows: Conversations in the data, or None if that is not known because they cannot be read.

    Raises:
        ConfigError: With every mistake: unknown names and options, defenses of another stage, samples that are missing
            or too few, data of which no row is left.
    """
    problems = ProblemList()
    defenses: list[DataDefense] = []
    left = rows
    for place, step in enumerate(steps):
        found = ProblemList()
        with found.collect():
            defense = find_data_defense(step.name, step.options)
            defense.check(model)
            defenses.append(defense)
            left = None if left is None else defense.rows_after(left, model.name)
        problems.found += [f"before.{place}: {problem}" for problem in found.found]
    problems.raise_if_any(ConfigError)
    return defenses


def data_defenses(steps: Sequence[ChainStep]) -> list[DataDefense]:
    """Return the defenses of steps that have been checked."""
    return [find_data_defense(step.name, step.options) for step in steps]


def prompts_of_data(steps: Sequence[ChainStep], model: ModelSettings) -> list[tuple[str, Sequence[Prompt]]]:
    """Return what each of the defenses adds to the data or looks at, so that nobody reports on it.

    Raises:
        InputError: If a step is wrong.
    """
    return [(defense.name, defense.prompts_used(model.name)) for defense in data_defenses(steps)]


def apply_before(
    steps: Sequence[ChainStep],
    model: ModelSettings,
    conversations: Sequence[Conversation],
    shapes: Mapping[str, int],
    folder: Path | None,
    progress: ProgressCallback | None = None,
) -> PreparedData:
    """Apply checked defenses one after the other, or read what they left before.

    Args:
        steps: The defenses in their order.
        model: The start model.
        conversations: The data as given.
        shapes: Their shapes.
        folder: Gets the conversations, `data.json`, and `data_scores.jsonl` if rows are scored; None: nothing is kept.
        progress: Told how far it is.

    Raises:
        ConfigError: If the folder holds data that were prepared from others, or otherwise.
    """
    defenses = data_defenses(steps)
    key = preparation_key(defenses, model, conversations)
    if folder is not None and (folder / RECORD_FILE).exists():
        found = read_prepared(folder)
        if found.record.key != key:
            raise ConfigError(
                f"{folder}: holds data that were prepared from other data, or otherwise. Choose another folder, or "
                "remove this one."
            )
        return found
    prepared, scores = _apply(defenses, model, conversations, shapes, key, progress or silent)
    if folder is not None:
        if scores:
            write_text(folder / SCORES_FILE, "".join(f"{json.dumps(row)}\n" for row in scores))
        write_prepared(prepared, folder)
    return prepared


def preparation_key(
    defenses: Sequence[DataDefense], model: ModelSettings, conversations: Sequence[Conversation]
) -> str:
    """Hash what prepared data depend on, but the model's weights, which the training compares."""
    chain = [
        [defense.name, defense.options.model_dump(mode="json"), defense.read_hash(model.name)] for defense in defenses
    ]
    name = model.model_dump(mode="json") if any(defense.needs_model for defense in defenses) else None
    return sha256_json([chain, name, conversations_hash(conversations)])


def _apply(
    defenses: Sequence[DataDefense],
    model: ModelSettings,
    conversations: Sequence[Conversation],
    shapes: Mapping[str, int],
    key: str,
    progress: ProgressCallback,
) -> tuple[PreparedData, list[dict[str, object]]]:
    began = time.monotonic()
    loaded: list[ModelIdentity] = []

    @cache
    def loaded_model() -> ChatModel:
        chat = load(model)
        loaded.append(chat.identity)
        return chat

    context = DataContext(model.name, loaded_model, progress)
    rows, records, scores = conversations, [], []
    for place, defense in enumerate(defenses):
        changed = defense.change(rows, context)
        records.append(_step(defense, rows, changed))
        scores += _score_rows(place, changed)
        rows = changed.conversations
    record = DataPreparation(
        key=key,
        given_hash=conversations_hash(conversations),
        given=len(conversations),
        shapes=dict(shapes),
        hash=conversations_hash(rows),
        conversations=len(rows),
        steps=records,
        model=loaded[0] if loaded else None,
        duration_seconds=round(time.monotonic() - began, 3),
        environment=environment(),
    )
    return PreparedData(rows, record), scores


def _step(defense: DataDefense, before: Sequence[Conversation], changed: ChangedRows) -> DataStep:
    return DataStep(
        defense=defense.name,
        purpose=defense.purpose,
        options=defense.options.model_dump(mode="json"),
        rows_before=len(before),
        added=changed.added,
        dropped=len(changed.dropped),
        rows_after=len(changed.conversations),
        hash=conversations_hash(changed.conversations),
        facts=dict(changed.facts),
    )


def _score_rows(place: int, changed: ChangedRows) -> list[dict[str, object]]:
    """Return a line a row that came in: its place there, its score, and whether it was kept."""
    gone = frozenset(changed.dropped)
    return [
        {"step": place, "index": index, "score": score, "kept": index not in gone}
        for index, score in enumerate(changed.scores or ())
    ]


def data_folder_name(steps: Sequence[ChainStep]) -> str:
    """Name the folder of prepared data after the whole chain, so that another chain never takes its result over."""
    digest = sha256_json([step.model_dump(mode="json") for step in steps])[:8]
    return "-".join([*(step.name for step in steps), digest])
