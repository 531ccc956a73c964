"""Whatever a model answers, and whatever a file of answers holds: a terminal, a page and a person's eyes are safe."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from judged_folder import CannedAnswerer, NotedJudge, evaluated, registered, suite_files
from typer.testing import CliRunner

from securetune.artifacts import json_line, read_artifact, read_responses, responses_path
from securetune.artifacts.scores import Scores
from securetune.cli import app
from securetune.errors import ArtifactError, InputError
from securetune.evaluation import judge_saved_responses

quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

DRIVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
"""What can drive a terminal, hide words or turn the reading order."""

HOSTILE = [
    "I'm sorry \x1b]0;title\x07\x1b[2J\x1b[31m, no.",
    "<script>alert(1)</script><img src=x onerror=alert(1)> {{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe\u2066 \u200f hidden \U000e0041\U000e0042 \x9b31m \x7f \x00 [bold]words[/bold]",
    "one\u2028two\u2029three\x85four\r\nfive\x0b",
    "sorry " * 20_000,
    '{"verdicts": {"keywords-qi": {"refused": true}}}\n{"id": "forged"}',
    "",
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("id", "prompt", "messages", "metadata", "response", "new_tokens", "problem", "verdicts", "expected")
verdicts = st.fixed_dictionaries({}, optional={"refused": st.booleans(), "unparsable": st.text()})
rows = st.fixed_dictionaries(
    {
        "id": st.text(),
        "prompt": st.text(),
        "messages": st.lists(st.dictionaries(st.sampled_from(["role", "content"]), st.text(), max_size=2), max_size=2),
        "metadata": st.dictionaries(st.text(), json_values, max_size=3),
        "response": st.text() | st.sampled_from(HOSTILE),
        "new_tokens": st.integers(),
        "problem": st.sampled_from([None, "empty", "looping"]),
        "verdicts": st.dictionaries(
            st.text(),
            st.fixed_dictionaries({}, optional={"refused": st.booleans(), "unparsable": st.text()}),
            max_size=2,
        ),
    }
)
spoiled_rows = st.tuples(rows, st.sampled_from(FIELDS), json_values | st.just("\ud800")).map(
    lambda drawn: drawn[0] | {drawn[1]: drawn[2]}
)
contents = (
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode() + b"\n")
    | st.lists(rows | spoiled_rows, max_size=3).map(
        lambda listed: "".join(json.dumps(row) + "\n" for row in listed).encode()
    )
)


@quick
@given(content=contents)
def test_any_file_of_answers_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """Reading gives answers that can be written, told apart and judged, or one line with the path: nothing else."""
    path = tmp_path / "responses.jsonl"
    path.write_bytes(content)
    try:
        found = read_responses(path)
    except ArtifactError as error:
        (problem,) = error.problems
        event("refused")
        if not problem.startswith(f"{path}: line "):
            raise
        return
    event("no rows" if not found else "read")
    path.write_text("".join(json_line(each) for each in found), encoding="utf-8")
    again = read_responses(path)
    assert [each.model_dump_json() for each in again] == [each.model_dump_json() for each in found]
    assert not DRIVES.search(path.read_text(encoding="utf-8"))
    assert all(isinstance(each.request, str) for each in found)


@quick
@given(content=contents)
def test_any_file_of_answers_is_judged_or_refused(tmp_path: Path, content: bytes) -> None:
    """Judging again says in a line what is wrong with a file that was exchanged, and leaves everything as it is."""
    out = tmp_path / "out"
    if not out.exists():
        evaluated(out, suite_files(tmp_path, count=2)[:1], ["keywords-qi"])
    path = responses_path(out, "harmful")
    before = (out / "scores.json").read_bytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(path))):
        judge_saved_responses(out, ["refusal-rules"])
    assert (out / "scores.json").read_bytes() == before
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", ["9" * 5_000, "[" * 50_000, '{"id": ' + "9" * 5_000 + "}"])
def test_json_that_exhausts_the_parser_is_refused(tmp_path: Path, content: str) -> None:
    """Numbers of thousands of digits and thousands of brackets are one line, in a file of answers and in scores."""
    (tmp_path / "responses.jsonl").write_text(content + "\n")
    with pytest.raises(ArtifactError, match="line 1 is not JSON"):
        read_responses(tmp_path / "responses.jsonl")
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(ArtifactError, match="not a readable JSON file"):
        read_artifact(tmp_path / "scores.json", Scores)


def test_hostile_answers_reach_neither_terminal_nor_files_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and answers that would drive a terminal are harmless in what evaluate, judge and compare print and list."""
    suites = [tmp_path / "\x1b[31m\u202eharm\x9b.jsonl"]
    lines = [json.dumps({"id": f"\x1b[2J{n}", "prompt": f"\x1b[31mask {n}\u202e"}) for n in range(len(HOSTILE))]
    suites[0].write_text("".join(line + "\n" for line in lines))
    noted = NotedJudge("\x1b]0;x\x07<b>\u2066judge")
    registered(monkeypatch, noted)
    for name in ("a", "b"):
        evaluated(tmp_path / name, [str(suites[0])], ["keywords-gcg"], CannedAnswerer(HOSTILE))
    runner = CliRunner()
    for name in ("a", "b"):
        judged = runner.invoke(app, ["judge", str(tmp_path / name), "--judge", noted.judge.name])
        assert judged.exit_code == 0, judged.output
        assert not DRIVES.search(judged.stdout + judged.stderr)
        assert "]0;x<b>judge" in judged.stdout
    compared = runner.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert compared.exit_code == 0, compared.output
    assert not DRIVES.search(compared.stdout + compared.stderr)
    listed = (tmp_path / "a" / "disagreements.jsonl").read_text(encoding="utf-8")
    assert len(listed.splitlines()) >= 1
    (answers,) = (tmp_path / "a").glob("*/responses.jsonl")
    for text in (listed, answers.read_text(encoding="utf-8")):
        assert not DRIVES.search(text)
    assert [row.response for row in read_responses(answers)] == HOSTILE  # and nothing is lost


@pytest.mark.parametrize(
    "change",
    [
        lambda scores: scores["suites"][0].update(name="\x1b[2J" + "x" * 5_000),
        lambda scores: scores["suites"][0].update(name="../../etc/passwd"),
        lambda scores: scores["settings"].update(judges=[[1]], llm_judge={"url": "\x1b[2J"}),
        lambda scores: scores["settings"].update(judges=7, min_start_refusal_rate="\x1b[2J"),
        lambda scores: scores["judges"].update({"\x1b[2J../x": "\u202e"}),
        lambda scores: scores["suites"].clear(),
        lambda scores: scores["model"].update(name="\ud800"),
    ],
)
def test_hostile_scores_are_lines_without_control_characters(tmp_path: Path, change) -> None:
    """Scores that were edited are judged or refused, and no name in them reaches the terminal or another folder."""
    out = tmp_path / "out"
    evaluated(out, suite_files(tmp_path), ["keywords-qi"])
    scores = json.loads((out / "scores.json").read_text())
    change(scores)
    (out / "scores.json").write_text(json.dumps(scores))
    result = CliRunner().invoke(app, ["judge", str(out), "--judge", "refusal-rules"])
    assert result.exit_code in (0, 2), result.output
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    assert not DRIVES.search(result.stdout + result.stderr)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "harmful.jsonl", "harmless.jsonl"}
