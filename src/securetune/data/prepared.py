"""Training data that defenses have prepared, and how they are kept: every seed, and a resumed run, has the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from securetune.artifacts import DataPreparation, read_artifact, read_json_lines, write_json, write_text
from securetune.data.conversations import Conversation, conversations_hash
from securetune.errors import ArtifactError

RECORD_FILE = "data.json"
CONVERSATIONS_FILE = "conversations.jsonl"
SCORES_FILE = "data_scores.jsonl"


class PreparedData(NamedTuple):
    """Conversations to train on, and what was done to them.

    Attributes:
        conversations: As the last defense left them.
        record: What each defense did.
    """

    conversations: Sequence[Conversation]
    record: DataPreparation


def write_prepared(data: PreparedData, folder: Path) -> None:
    """Write the conversations, and the record last: it marks the folder as complete."""
    rows = (json.dumps(conversation, ensure_ascii=False) for conversation in data.conversations)
    write_text(folder / CONVERSATIONS_FILE, "".join(f"{row}\n" for row in rows))
    write_json(folder / RECORD_FILE, data.record)


def read_prepared(folder: Path) -> PreparedData:
    """Read what `write_prepared` wrote.

    Raises:
        ArtifactError: If a file is missing or spoiled, or the conversations are not those of the record.
    """
    record = read_artifact(folder / RECORD_FILE, DataPreparation)
    conversations: list[Conversation] = [
        {"messages": row["messages"]} for row in read_json_lines(folder / CONVERSATIONS_FILE)
    ]
    if conversations_hash(conversations) != record.hash:
        raise ArtifactError(
            f"{folder / CONVERSATIONS_FILE}: holds other conversations than {RECORD_FILE} tells of. Remove the folder "
            f"{folder}, and start again."
        )
    return PreparedData(conversations, record)
