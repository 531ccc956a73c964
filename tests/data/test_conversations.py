"""Training data: which rows are understood, and that every bad one is named."""

import json
import re
from pathlib import Path

import pytest

from securetune.data.conversations import read_conversations
from securetune.errors import DataError

USER = {"role": "user", "content": "hello"}
ASSISTANT = {"role": "assistant", "content": "hi"}
PAIR = [USER, ASSISTANT]

CASES = {
    "messages": {"messages": PAIR, "source": "ignored"},
    "TRL, text": {"prompt": "hello", "completion": "hi"},
    "TRL, messages": {"prompt": [USER], "completion": [ASSISTANT]},
    "prompt and response": {"prompt": "hello", "response": "hi"},
    "GSM8K": {"question": "hello", "answer": "hi"},
    "Alpaca without input": {"instruction": "hello", "input": "", "output": "hi"},
    "Dolly without context": {"instruction": "hello", "context": "", "response": "hi", "category": "x"},
}


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("row", CASES.values(), ids=CASES)
def test_usual_shapes(row: dict, tmp_path: Path) -> None:
    """A row in any of the usual shapes becomes the same conversation."""
    assert read_conversations(write_lines(tmp_path / "data.jsonl", [row])) == [{"messages": PAIR}]


def test_alpaca_input_follows_the_instruction(tmp_path: Path) -> None:
    """An Alpaca row's input is put under its instruction, without any wrapper."""
    row = {"instruction": "Translate.", "input": "oui", "output": "yes"}
    found = read_conversations(write_lines(tmp_path / "data.jsonl", [row]))
    assert found[0]["messages"][0] == {"role": "user", "content": "Translate.\n\noui"}


def test_several_turns_and_a_system_message(tmp_path: Path) -> None:
    """A conversation of several turns is kept as it is."""
    messages = [{"role": "system", "content": "be brief"}, *PAIR, *PAIR]
    found = read_conversations(write_lines(tmp_path / "data.jsonl", [{"messages": messages}]))
    assert found == [{"messages": messages}]


def test_a_json_list_is_read_like_lines(tmp_path: Path) -> None:
    """One JSON list holds the same rows as JSON lines, also with a byte order mark and blank lines."""
    rows = [{"prompt": f"question {number}", "completion": "hi"} for number in range(3)]
    as_list = tmp_path / "data.json"
    as_list.write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    lines = write_lines(tmp_path / "data.jsonl", [rows[0], "\n", rows[1], rows[2]])
    assert read_conversations(as_list) == read_conversations(lines)


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    """All bad rows are reported together, each with its line number and what it lacks."""
    path = write_lines(
        tmp_path / "data.jsonl",
        [
            {"messages": PAIR},
            "{broken\n",
            {"text": "no question"},
            {"prompt": "", "completion": "hi"},
            {"messages": [USER]},
            {"messages": [{"role": "robot", "content": "x"}, ASSISTANT]},
            {"messages": [{"role": "user"}, ASSISTANT]},
            {"messages": [USER, ASSISTANT, ASSISTANT]},
            "[1, 2]\n",
            {"prompt": "q", "input": 3, "completion": "a"},
        ],
    )
    with pytest.raises(DataError) as caught:
        read_conversations(path)
    expected = {
        2: "not valid JSON",
        3: "must have `messages`, or a question .* got the fields text",
        4: "`prompt` must be text that is not empty; got ''",
        5: "the last message must be the assistant's",
        6: r"messages\[0\]: role must be one of system, user, assistant; got 'robot'",
        7: r"messages\[0\]: content must be text that is not empty; got nothing",
        8: "every assistant message must answer",
        9: "must be a JSON object; got list",
        10: "`input` and `context` must be text",
    }
    assert len(caught.value.problems) == len(expected)
    for (row, pattern), problem in zip(expected.items(), caught.value.problems, strict=True):
        assert problem.startswith(f"{path}: row {row}: ")
        assert re.search(pattern, problem)


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    """Past twenty, bad rows are counted instead of listed."""
    path = write_lines(tmp_path / "data.jsonl", [{"text": "x"}] * 50)
    with pytest.raises(DataError, match="30 more rows are unusable") as caught:
        read_conversations(path)
    assert len(caught.value.problems) == 21


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "must hold at least one conversation; got an empty file"),
        (b"[]", "must hold at least one conversation"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8"),
        (b'[{"a": 1},', "line 1: not valid JSON"),
    ],
)
def test_unusable_files(content: bytes, sentence: str, tmp_path: Path) -> None:
    """A file without any row, or that is no text or no JSON, is refused with a sentence."""
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_conversations(path)


def test_a_missing_file_names_the_embedded_data(tmp_path: Path) -> None:
    """A missing file is an error that says what could be given instead."""
    with pytest.raises(DataError, match=r'no such data file\. Give a JSON-lines file, or "tiny-world"'):
        read_conversations(tmp_path / "nowhere.jsonl")


def test_tiny_world_is_a_data_set() -> None:
    """The embedded downstream data come by name, the same every time."""
    rows = read_conversations("tiny-world", count=20)
    assert len(rows) == 20
    assert rows == read_conversations("tiny-world", count=20)
    assert [message["role"] for message in rows[0]["messages"]] == ["user", "assistant"]
