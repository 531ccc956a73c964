"""`securetune judge`: what it prints, what it refuses, and that a kill costs nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from judged_folder import COUNT, CannedAnswerer, NotedJudge, evaluated, registered, suite_files
from typer.testing import CliRunner

from securetune.artifacts import Scores, read_artifact
from securetune.cli import app

ANSWERS = ["I'm sorry, but I can't help with that.", "Here is how.", "", "sorry for the wait: step one."]


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["judge", *map(str, arguments)])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    evaluated(tmp_path / "out", suite_files(tmp_path), ["keywords-gcg"], CannedAnswerer(ANSWERS))
    return tmp_path / "out"


def test_it_prints_scores_and_agreement(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each suite and judge, one for each pair and question, and where the answers they differ on are."""
    registered(monkeypatch, NotedJudge())
    result = invoke(out, "--judge", "noted")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "harmful, judged by keywords-gcg: refused 0.250 [0.071, 0.591] of 8, attack success 0.750 [0.409, 0.929] of 8",
        "harmful, judged by noted: refused 0.500 [0.215, 0.785] of 8, attack success 0.500 [0.215, 0.785] of 8",
        "harmless, judged by keywords-gcg: refused 0.250 [0.071, 0.591] of 8",
        "harmless, judged by noted: refused 0.500 [0.215, 0.785] of 8",
    ]
    attacks, refusals, differing, scores = lines[4:]
    assert attacks.startswith(
        "agreement of keywords-gcg and noted on attack success (harmful): 75.0% [40.9, 92.9] of 8, κ 0.50 ["
    )
    assert "; without empty and looping answers 66.7% [30.0, 90.3] of 6, κ 0.40 [" in attacks
    assert refusals.startswith("agreement of keywords-gcg and noted on refusals: 75.0% [50.5, 89.8] of 16, κ 0.50 [")
    assert differing == f"answers on which judges differ: 4: {out / 'disagreements.jsonl'}"
    assert scores == f"Scores: {out / 'scores.json'}"
    assert result.stderr.splitlines() == ["judge noted: 16 requests"]


def test_json_is_the_scores(out: Path) -> None:
    """`--json` prints what is written, and nothing else goes to stdout."""
    result = invoke(out, "--judge", "refusal-rules", "--only", "--json")
    assert result.exit_code == 0, result.output
    assert Scores.model_validate(json.loads(result.stdout)) == read_artifact(out / "scores.json", Scores)


def test_many_judges_are_compared_with_the_first(out: Path) -> None:
    """More than three pairs are not all printed; that they are in the file is said."""
    given = [word for name in ("keywords-qi", "keywords-garak", "refusal-rules") for word in ("--judge", name)]
    lines = invoke(out, *given).stdout.splitlines()
    pairs = [line for line in lines if line.startswith("agreement of keywords-gcg and ")]
    assert len(pairs) in (3, 6)
    assert "agreement of 3 more pairs of judges: in scores.json" in lines


def test_judges_that_always_say_the_same_have_no_kappa(tmp_path: Path) -> None:
    """It says so, instead of a number that looks like one."""
    answers = CannedAnswerer(["I'm sorry, but I can't help with that."])
    evaluated(tmp_path / "out", suite_files(tmp_path)[:1], ["keywords-gcg"], answers)
    lines = invoke(tmp_path / "out", "--judge", "refusal-rules").stdout.splitlines()
    assert any(line.endswith("100.0% [67.6, 100.0] of 8, κ not defined (both always say the same)") for line in lines)
    assert "answers on which judges differ: 0" in lines


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{out}"], "a judge must be given. Give --judge NAME"),
        (["{out}", "--judge", "keywords-quy"], 'judge "keywords-quy" does not exist. Did you mean "keywords-qi"?'),
        (["{out}", "--judge", "keywords-qi", "--suite", "x"], 'the suite "x" was not evaluated; got harmful, harmless'),
        (["{out}/harmful", "--judge", "keywords-qi"], "scores.json: no such file"),
        (["{out}", "--judge", "keywords-qi", "--set", "evaluation.max_prompts=3"], "does nothing with saved answers"),
        (["{out}", "--judge", "keywords-qi", "--set", "evaluation.max_promts=3"], "evaluation.max_promts: unknown key"),
        (["{out}", "--judge", "keywords-qi", "--set", "model.name=x"], "model: unknown key"),
        (["{out}", "--judge", "keywords-qi", "--set", "evaluation=x"], "evaluation must be"),
        (["{out}", "--judge", "keywords-qi", "--set", "evaluation.judges=[x]"], "are named by --judge NAME"),
    ],
)
def test_bad_input_is_one_line(out: Path, arguments: list[str], sentence: str) -> None:
    """Status 2, one line with what to do, and the evaluation is as it was."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = invoke(*(argument.format(out=out) for argument in arguments))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.pipeline
def test_a_killed_judging_goes_on(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGKILL verdicts that had come are kept, the scores are the old ones, and only the rest is asked for."""
    before = (out / "scores.json").read_bytes()
    source, script = Path(__file__).parents[2] / "src", Path(__file__).with_name("slow_judge.py")
    command = [sys.executable, str(script), "0.3", "judge", str(out), "--judge", "slow"]
    kept = out / "harmful" / "verdicts" / "slow.jsonl"
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(source)}, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not (kept.exists() and kept.read_bytes().count(b"\n") >= 2) and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert b"judge slow: about 5 seconds" in said
    assert (out / "scores.json").read_bytes() == before
    count = kept.read_bytes().count(b"\n")
    assert 2 <= count < COUNT
    noted = NotedJudge("slow")
    noted.judge = type(noted.judge)("slow", "Takes its time.", noted.judge_all)
    registered(monkeypatch, noted)
    result = invoke(out, "--judge", "slow")
    assert result.exit_code == 0, result.output
    assert len(noted.asked) == 2 * COUNT - count
    assert read_artifact(out / "scores.json", Scores).suites[0].refusal_rate["slow"].value == 0.5
