"""Files of training data: the same rows from JSON, CSV, TSV, Parquet and data sets."""

import gzip
import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from securetune.data.conversations import Conversation, read_conversations, read_training_data
from securetune.errors import DataError

ROWS = [
    {"prompt": 'say "yes", please\ntwice', "completion": "yes; yes"},
    {"prompt": "how?", "completion": "like,\tthis"},
]
CONVERSATIONS: list[Conversation] = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    for row in ROWS
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def delimited(delimiter: str) -> str:
    lines = [["prompt", "completion"], *([row["prompt"], row["completion"]] for row in ROWS)]
    return "\r\n".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines)


TEXTS = {
    "lines.jsonl": "\n".join(map(json.dumps, ROWS)),
    "lines under another name.txt": "\n".join(map(json.dumps, ROWS)),
    "list.json": json.dumps(ROWS, indent=1),
    "object.json": json.dumps({"version": 1, "data": ROWS}),
    "object, indented.json": json.dumps({"data": ROWS}, indent=1),
    "object, a row a line.json": '{"data": [\n' + ",\n".join(map(json.dumps, ROWS)) + "\n]}",
    "comma.csv": delimited(","),
    "semicolon.csv": "\ufeff" + delimited(";"),
    "tab.TSV": delimited("\t"),
}


@pytest.mark.parametrize(("name", "text"), TEXTS.items(), ids=TEXTS)
def test_every_text_file_gives_the_same_rows(name: str, text: str, tmp_path: Path) -> None:
    """The same rows are read from lines, lists, objects with one list, and tables with any delimiter."""
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_conversations(tmp_path / name) == CONVERSATIONS


@pytest.mark.parametrize("name", ["lines.jsonl", "tab.TSV", "semicolon.csv"])
def test_what_gzip_has_compressed(name: str, tmp_path: Path) -> None:
    """A compressed file gives the rows of the file in it; its name may say so or not."""
    for path in (tmp_path / f"{name}.gz", tmp_path / name):
        path.write_bytes(gzip.compress(TEXTS[name].encode()))
        assert read_conversations(path) == CONVERSATIONS


def test_a_list_of_conversations(tmp_path: Path) -> None:
    """Rows may be lists of messages, without an object around them."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps([row["messages"] for row in CONVERSATIONS]))
    assert read_training_data(path) == (CONVERSATIONS, {"messages": 2})


def test_parquet(tmp_path: Path) -> None:
    """Parquet gives the same rows, whatever the file is called, with messages in columns of their own type."""
    path = tmp_path / "data.bin"
    Dataset.from_list(ROWS).to_parquet(path)
    assert read_conversations(path) == CONVERSATIONS
    (tmp_path / "data.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_conversations(tmp_path / "data.gz") == CONVERSATIONS
    Dataset.from_list(CONVERSATIONS).to_parquet(path)
    assert read_conversations(path) == CONVERSATIONS


def test_json_in_a_table(tmp_path: Path) -> None:
    """A table's cell may hold a list of messages as JSON; a broken one is named with its row."""
    path = tmp_path / "data.csv"
    cell = json.dumps(CONVERSATIONS[0]["messages"]).replace('"', '""')
    path.write_text(f'messages\n"{cell}"\n')
    assert read_conversations(path) == CONVERSATIONS[:1]
    path.write_text(f'messages\n"{cell}"\n"[{{]"\n')
    with pytest.raises(DataError, match="row 3: `messages`: not valid JSON"):
        read_conversations(path)


def test_a_single_object_is_one_row(tmp_path: Path) -> None:
    """A JSON file with one conversation is one row, and lists under a shape's name are told from its turns."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps(CONVERSATIONS[0], indent=1))
    assert read_conversations(path) == CONVERSATIONS[:1]
    path.write_text(json.dumps({"conversations": CONVERSATIONS}))
    assert read_conversations(path) == CONVERSATIONS


def test_bad_rows_of_a_table(tmp_path: Path) -> None:
    """Bad rows of a table are named together by the row that a spreadsheet shows; blank ones are none."""
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion\nhow?,yes\n\n,yes\nhow?,yes,no\n")
    with pytest.raises(DataError) as caught:
        read_conversations(path)
    assert caught.value.problems == [
        f"{path}: row 4: `prompt` must be text that is not empty; got nothing",
        f"{path}: row 5: has 3 cells; the header names 2. Quote text that holds a delimiter.",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prompt,prompt\na,b\n", "row 1 must name each column once; got prompt, prompt"),
        ('prompt,completion\n"a,b\n', "line 2: cannot be read as CSV"),
        ("prompt,completion\n", "must hold at least one conversation"),
        ("text,label\na,b\n", "row 2: must have `messages`, .* got the fields text, label"),
    ],
)
def test_unusable_tables(text: str, sentence: str, tmp_path: Path) -> None:
    """A table without rows, with an unclosed quote or with unknown columns is refused with a sentence."""
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_conversations(path)


def test_a_long_cell(tmp_path: Path) -> None:
    """A cell may be longer than the 128 KiB at which Python's reader stops by itself."""
    path = tmp_path / "data.csv"
    path.write_text(f"prompt,completion\nhow?,{'a' * 200_000}\n")
    assert len(read_conversations(path)[0]["messages"][1]["content"]) == 200_000


def test_data_sets(tmp_path: Path) -> None:
    """A data set is read by the name it has for probes; its columns tell the shape."""
    shared = [{"from": "human", "value": "how?"}, {"from": "gpt", "value": "so"}]
    sets = DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list([{"conversations": shared}]))
    sets.save_to_disk(tmp_path / "saved")
    assert read_conversations(f"folder:{tmp_path}/saved:train") == CONVERSATIONS
    assert read_training_data(f"folder:{tmp_path}/saved:test").shapes == {"sharegpt": 1}
    with pytest.raises(DataError, match="has several splits: train, test"):
        read_conversations(f"folder:{tmp_path}/saved")
    with pytest.raises(DataError, match="training takes whole rows, so no column is named"):
        read_conversations(f"folder:{tmp_path}/saved:train:prompt")


def test_a_folder_of_files(tmp_path: Path) -> None:
    """A folder of table files is a data set too; its bad rows are named."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "data.csv").write_text('instruction,input,output\nTranslate,oui,"yes"\nSay,,\n')
    with pytest.raises(DataError) as caught:
        read_conversations(f"folder:{tmp_path}/files")
    assert caught.value.problems == [
        f"folder:{tmp_path}/files: row 2: `output` must be text that is not empty; got nothing"
    ]
