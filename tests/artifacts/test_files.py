"""Files between stages: whole or absent, and refused with a sentence when they are not what they should be."""

import json
import os
import pickle

import pytest

from securetune.artifacts import (
    RateEstimate,
    RunRecord,
    StageRecord,
    append_json_line,
    environment,
    read_artifact,
    read_json,
    read_json_lines,
    sha256_files,
    sha256_json,
    sha256_text,
    write_json,
    write_text,
)
from securetune.errors import ArtifactError, ConfigError, DataError, InputError, ProblemList, RunError, SecuretuneError


@pytest.fixture
def record():
    return RunRecord(
        config_hash="c", input_hashes={}, environment={"python": "3"}, stages={"start": StageRecord(seconds=1.5)}
    )


def test_an_artifact_reads_back(tmp_path, record):
    """What is written is read again, equal."""
    write_json(tmp_path / "deep" / "run.json", record)
    assert read_artifact(tmp_path / "deep" / "run.json", RunRecord) == record


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """A writer that dies before the end leaves the previous content under the name."""
    path = tmp_path / "a.json"
    write_text(path, "old")

    def die(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_not_a_number_is_never_written(tmp_path):
    """JSON has no NaN, and a metric over no data must not look like one."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"rate": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not a readable JSON file"),
        ("[]", 'must be a file of format "securetune.run/1"; got format null'),
        ('{"format": "securetune.run/9"}', 'got format "securetune.run/9"'),
        ('{"format": "securetune.run/1"}', "config_hash: Field required. Was the file edited by hand?"),
    ],
)
def test_another_file_is_refused(tmp_path, text, sentence):
    """A file that is no artifact of the kind wanted is an error with its name, never a crash further on."""
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=rf"run\.json: .*{sentence}"):
        read_artifact(path, RunRecord)


def test_a_missing_file_is_named(tmp_path):
    """A file that is not there is one sentence."""
    with pytest.raises(ArtifactError, match=r"gone\.json: no such file"):
        read_json(tmp_path / "gone.json")


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    """Half a last line is neither read, nor left in front of the next one."""
    path = tmp_path / "rows.jsonl"
    append_json_line(path, {"n": 1, "text": "a\u2028b"})
    with open(path, "a") as file:
        file.write('{"n": 2')
    assert [row["n"] for row in read_json_lines(path)] == [1]
    append_json_line(path, {"n": 3})
    assert list(read_json_lines(path)) == [{"n": 1, "text": "a\u2028b"}, {"n": 3}]


def test_a_broken_line_inside_a_file_is_an_error(tmp_path):
    """Only the end of a file can be cut off by a kill; anything else means that somebody changed it."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\nnonsense\n{"n": 3}\n')
    with pytest.raises(ArtifactError, match="line 2 is not JSON"):
        list(read_json_lines(path))


def test_a_missing_file_has_no_rows(tmp_path):
    """A log that was never begun is empty."""
    assert list(read_json_lines(tmp_path / "rows.jsonl")) == []


def test_hashes_keep_parts_apart(tmp_path):
    """Moving a letter or a byte from one part to the next changes the hash; the order of keys does not."""
    assert sha256_text("ab", "c") != sha256_text("a", "bc")
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    (tmp_path / "a").write_bytes(b"ab")
    (tmp_path / "b").write_bytes(b"c")
    before = sha256_files([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"bc")
    assert sha256_files([tmp_path / "a", tmp_path / "b"]) != before


def test_environment_names_versions():
    """A result says with which versions it was made, and holds no paths and no host name."""
    found = environment()
    assert {"securetune", "torch", "transformers", "trl", "peft", "python", "cpu_count"} <= set(found)
    assert not any(os.sep in value for value in found.values())
    assert json.dumps(found)


def test_a_rate_over_nothing_is_refused():
    """A share of no items is not 0: it does not exist."""
    with pytest.raises(ValueError, match="count"):
        RateEstimate(value=0.0, low=0.0, high=0.0, count=0)


def test_problems_are_collected_across_checks():
    """Several failing checks give one error with all their sentences, in order; other exceptions pass through."""
    problems = ProblemList()
    with problems.collect():
        raise DataError(["a", "b"])
    with problems.collect():
        raise ConfigError("c")
    with pytest.raises(RunError), problems.collect():
        raise RunError("not the user's mistake")
    with pytest.raises(InputError) as caught:
        problems.raise_if_any()
    assert caught.value.problems == ["a", "b", "c"]
    assert str(caught.value) == "a\nb\nc"


def test_no_problem_no_error():
    """With nothing found, nothing is raised."""
    problems = ProblemList()
    with problems.collect():
        pass
    problems.raise_if_any()
    assert problems.found == []


def test_errors_survive_pickling():
    """An error from a worker process still has its sentences one by one, and its exit status."""
    error = pickle.loads(pickle.dumps(DataError(["a", "b"])))
    assert isinstance(error, DataError)
    assert error.problems == ["a", "b"]
    assert (error.exit_status, RunError("x").exit_status, SecuretuneError("x").exit_status) == (2, 1, 1)
