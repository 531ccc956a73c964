"""Training data: which rows are understood, and that every bad one is named."""

import json
import re
from pathlib import Path

import pytest

from securetune.data.conversations import read_conversations, read_training_data
from securetune.errors import DataError

USER = {"role": "user", "content": "hello"}
ASSISTANT = {"role": "assistant", "content": "hi"}
PAIR = [USER, ASSISTANT]

CASES = {
    "messages": {"messages": PAIR, "source": "ignored"},
    "ShareGPT": {"id": "1", "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]},
    "ShareGPT, other names": {
        "conversations": [{"from": "user", "value": "hello"}, {"from": "bot", "value": "hi", "weight": None}],
        "system": "",
    },
    "messages under ShareGPT's name": {"conversations": PAIR},
    "a table with empty columns": {"messages": None, "prompt": "hello", "response": "hi", "conversations": None},
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
            {"conversations": [{"from": "robot", "value": "x"}]},
            {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}]},
            {"conversations": "x"},
            {"messages": [{"role": "system", "content": "a"}, *PAIR], "system": "b"},
            {"messages": PAIR, "system": 3},
            {"prompt": None, "completion": "hi"},
        ],
    )
    with pytest.raises(DataError) as caught:
        read_conversations(path)
    expected = {
        2: "not valid JSON",
        3: r"must have `messages`, `conversations` \(ShareGPT\), or a question .* got the fields text",
        4: "`prompt` must be text that is not empty; got ''",
        5: "the last message must be the assistant's",
        6: r"messages\[0\]: role must be one of system, user, assistant; got 'robot'",
        7: r"messages\[0\]: content must be text that is not empty; got nothing",
        8: "every assistant message must answer",
        9: "must be a JSON object, or a list of messages; got list",
        10: "`input` and `context` must be text",
        11: r"conversations\[0\]: `from` must be one of human, user, gpt, bot, assistant, system; got 'robot'",
        12: r"conversations\[1\]: `value` must be text that is not empty; got ''",
        13: "`conversations` must be a list that is not empty; got 'x'",
        14: "has two system messages",
        15: "`system` must be text; got 3",
        16: "`prompt` must be text that is not empty; got nothing",
    }
    assert len(caught.value.problems) == len(expected)
    for (row, pattern), problem in zip(expected.items(), caught.value.problems, strict=True):
        assert problem.startswith(f"{path}: row {row}: ")
        assert re.search(pattern, problem)


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    """A problem of many rows is told once with the first of them; past twenty problems, their rows are counted."""
    path = write_lines(tmp_path / "data.jsonl", [{"text": "x"}] * 50)
    with pytest.raises(DataError, match=r"rows 1, 2, 3, 4, 5 and 45 more: must have `messages`") as caught:
        read_conversations(path)
    assert len(caught.value.problems) == 1
    path = write_lines(tmp_path / "data.jsonl", [{f"text {number}": "x"} for number in range(50)])
    with pytest.raises(DataError, match="30 more rows are unusable") as caught:
        read_conversations(path)
    assert len(caught.value.problems) == 21


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "must hold at least one conversation; got no rows"),
        (b"[]", "must hold at least one conversation"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8"),
        (b'[{"a": 1},', "line 1: not valid JSON"),
        (b'{\n"data": [\n}', "line 3: not valid JSON"),
        (b'{"a": [1], "b": [2]}', "must hold one list of rows; got the lists a, b"),
        (b'{"data": [3]}', "row 1: must be a JSON object, or a list of messages; got int"),
        (b"\x1f\x8b\x08 cut short", "cannot be unzipped"),
        (b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_unusable_files(content: bytes, sentence: str, tmp_path: Path) -> None:
    """A file without any row, or that is no text or no JSON, is refused with a sentence."""
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_conversations(path)


def test_a_missing_file_says_what_could_be_given(tmp_path: Path) -> None:
    """A missing file, a folder and a bare hub name are errors that say what could be given instead."""
    with pytest.raises(DataError, match=r'no such data file\. Give a file of JSON lines, .* or "tiny-world"\.$'):
        read_conversations(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=f"is a folder. To take it as a data set, write folder:{tmp_path}"):
        read_conversations(tmp_path)
    with pytest.raises(DataError, match="For the data set on the hub, write hub:someone/chats"):
        read_conversations("someone/chats")


def test_a_system_field_comes_first(tmp_path: Path) -> None:
    """A `system` field is the system message, in any shape; repeating it in the first turn adds nothing."""
    system = {"role": "system", "content": "be brief"}
    rows = [
        {"system": "be brief", "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]},
        {"system": "be brief", "prompt": "hello", "completion": "hi"},
        {"system": "be brief", "messages": [system, *PAIR]},
    ]
    found = read_conversations(write_lines(tmp_path / "data.jsonl", rows))
    assert found == [{"messages": [system, *PAIR]}] * 3


def test_tiny_world_is_a_data_set() -> None:
    """The embedded downstream data come by name, the same every time."""
    rows = read_conversations("tiny-world", count=20)
    assert len(rows) == 20
    assert rows == read_conversations("tiny-world", count=20)
    assert [message["role"] for message in rows[0]["messages"]] == ["user", "assistant"]


def test_shapes_are_counted(tmp_path: Path) -> None:
    """What each row was recognised as is counted, so that a run can say it."""
    rows = [CASES["messages"], CASES["ShareGPT"], *[CASES["GSM8K"]] * 2, CASES["Alpaca without input"]]
    path = write_lines(tmp_path / "data.jsonl", rows)
    assert read_training_data(path).shapes == {"messages": 1, "sharegpt": 1, "question/answer": 2, "alpaca": 1}
    assert read_training_data("tiny-world", count=20).shapes == {"messages": 20}
