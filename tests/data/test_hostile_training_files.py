"""Whatever a file of training data holds, reading it gives usable conversations or one kind of error."""

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from securetune.data.conversations import read_training_data
from securetune.errors import DataError

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

fields = st.sampled_from(
    ["messages", "conversations", "from", "value", "role", "content", "prompt", "completion", "instruction", "output"]
)
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", ""])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | roles,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=3),
    max_leaves=10,
)
contents = (
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.lists(json_values, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
    | st.text(max_size=60).map(str.encode)
    | st.binary(max_size=60).map(lambda content: b"PAR1" + content)
)
halves = st.text(st.sampled_from("a\ud83d\ude00\udfff"), min_size=1, max_size=3).map(
    lambda text: json.dumps({"prompt": "how?", "completion": text}).encode()
)
"""Rows that are right but for halves of surrogate pairs, which JSON can write and UTF-8 cannot."""

names = st.sampled_from(["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.txt", "rows.parquet"])
texts = st.text(min_size=1, max_size=20).filter(lambda text: text.strip() and "\0" not in text)


@quick
@given(content=contents | halves, name=names)
def test_any_file_is_training_data_or_a_data_error(tmp_path: Path, content: bytes, name: str) -> None:
    """No content makes the readers fail in another way, and what is read ends with an answer and fits into UTF-8."""
    path = tmp_path / name
    path.write_bytes(content)
    try:
        found = read_training_data(path)
    except DataError:
        return
    assert sum(found.shapes.values()) == len(found.conversations) > 0
    for conversation in found.conversations:
        messages = conversation["messages"]
        assert messages[-1]["role"] == "assistant"
        assert all(isinstance(message["content"], str) for message in messages)
        json.dumps(conversation, ensure_ascii=False).encode()


@quick
@given(turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), lines=st.booleans())
def test_conversations_survive_a_file(tmp_path: Path, turns: list[tuple[str, str]], lines: bool) -> None:
    """Every character of a conversation comes back, as JSON lines or as a JSON list."""
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    row = {"messages": messages}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(row) + "\n" if lines else json.dumps([row, row]), encoding="utf-8")
    assert read_training_data(path).conversations == [row] * (1 if lines else 2)
