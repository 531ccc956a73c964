"""Verdicts are kept as they come: none is lost, none is asked for twice, and a missing one is never a safe answer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from judged_folder import ANSWER, COUNT, REFUSAL, CannedAnswerer, NotedJudge, evaluated, registered, suite_files

from securetune.artifacts import Scores, Verdict, read_artifact, read_json_lines, read_responses
from securetune.errors import ConfigError, RunError
from securetune.evaluation import judging


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> NotedJudge:
    judge = NotedJudge()
    registered(monkeypatch, judge)
    return judge


def without_times(scores: Scores) -> Scores:
    return scores.model_copy(update={"duration_seconds": {}})


def test_a_judge_that_dies_goes_on_where_it_was(noted: NotedJudge, tmp_path: Path) -> None:
    """After an error midway one line says what is missing, and the same call asks about the rest alone."""
    suites, out = suite_files(tmp_path), tmp_path / "out"
    expected = evaluated(tmp_path / "whole", suites, ["noted", "keywords-qi"])
    noted.asked.clear()
    noted.stop_after = 11
    answerer = CannedAnswerer()
    with pytest.raises(RunError) as caught:
        evaluated(out, suites, ["noted", "keywords-qi"], answerer)
    assert str(caught.value) == (
        f"{out}: 5 of 32 verdicts are missing (5 by noted), the last because: the server is gone. Nothing was scored. "
        "The other 27 verdicts are kept: the same command goes on with those that are missing."
    )
    assert not (out / "scores.json").exists()
    assert not list(out.rglob("responses.jsonl"))
    assert (len(noted.asked), len(answerer.asked)) == (11, 2 * COUNT)
    noted.stop_after = None
    again = CannedAnswerer()
    scores = evaluated(out, suites, ["noted", "keywords-qi"], again)
    assert (len(noted.asked), again.asked) == (2 * COUNT, [])
    assert without_times(scores) == without_times(expected)
    assert not list(out.rglob("*.part"))


def test_a_killed_judge_loses_nothing(noted: NotedJudge, tmp_path: Path) -> None:
    """What was judged before a kill is on disk; a row that the kill cut off is dropped and asked for again."""
    suites, out = suite_files(tmp_path), tmp_path / "out"
    noted.stop_after, noted.error = 5, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        evaluated(out, suites, ["noted"])
    with open(out / "harmful" / "verdicts" / "noted.jsonl", "a") as file:
        file.write('{"judge": "cut off')
    noted.stop_after = None
    assert evaluated(out, suites, ["noted"]).suites[0].attack_success_rate["noted"].value == 0.5
    assert noted.asked == [REFUSAL, ANSWER] * COUNT


def test_a_judge_that_gave_up_is_not_asked_about_the_next_suite(noted: NotedJudge, tmp_path: Path) -> None:
    """An error means that it cannot go on, and asking on would only wait again; another judge is asked all the same."""
    suites = suite_files(tmp_path)
    noted.stop_after = 0
    with pytest.raises(RunError, match=r"16 of 32 verdicts are missing \(16 by noted\)"):
        evaluated(tmp_path / "out", suites, ["noted", "keywords-qi"])
    assert noted.asked == []
    assert len(list(read_json_lines(tmp_path / "out" / "harmless" / "verdicts" / "keywords-qi.jsonl"))) == COUNT


def test_an_answer_without_a_verdict_is_asked_about_again(noted: NotedJudge, tmp_path: Path) -> None:
    """None in the place of a verdict leaves the scores unwritten, and only these answers for the next start."""
    suites, out = suite_files(tmp_path)[:1], tmp_path / "out"
    noted.skipped = {2, 5}
    with pytest.raises(RunError, match=r"2 of 8 verdicts are missing \(2 by noted\), the last because: the judge gave"):
        evaluated(out, suites, ["noted"])
    noted.skipped, noted.asked = set(), []
    assert evaluated(out, suites, ["noted"]).suites[0].count == COUNT
    assert noted.asked == [REFUSAL, ANSWER]


def test_one_judge_more_costs_its_own_verdicts_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second evaluation with a further judge asks nothing of the first; a changed judge is asked about all."""
    suites, out = suite_files(tmp_path), tmp_path / "out"
    first, second = NotedJudge("first", "model 1"), NotedJudge("second")
    registered(monkeypatch, first, second)
    evaluated(out, suites, ["first"])
    before = (out / "scores.json").read_bytes()
    second.stop_after = 3
    with pytest.raises(RunError):
        evaluated(out, suites, ["first", "second"])
    assert (out / "scores.json").read_bytes() == before
    assert all(set(row.verdicts) == {"first"} for row in read_responses(out / "harmful" / "responses.jsonl"))
    second.stop_after = None
    scores = evaluated(out, suites, ["first", "second"])
    assert (len(first.asked), len(second.asked)) == (2 * COUNT, 2 * COUNT)
    changed = NotedJudge("first", "model 2")
    registered(monkeypatch, changed)
    others = evaluated(out, suites, ["first", "second"])
    assert (len(changed.asked), len(second.asked)) == (2 * COUNT, 2 * COUNT)
    assert scores.judge_keys["first"] != others.judge_keys["first"]
    assert scores.judge_keys["second"] == others.judge_keys["second"]
    registered(monkeypatch, first)
    evaluated(out, suites, ["first", "second"])
    assert len(first.asked) == 2 * COUNT  # the verdicts of the first model are still there


def test_rules_are_known_by_name_and_description(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A judge without a fingerprint whose description is another one is another judge."""
    suites, out = suite_files(tmp_path)[:1], tmp_path / "out"
    rules = NotedJudge()
    for description in ("Notes what it is asked.", "Has other rules."):
        rules.judge = replace(rules.judge, description=description)
        registered(monkeypatch, rules)
        evaluated(out, suites, ["noted"])
    assert len(rules.asked) == 2 * COUNT


def test_an_answer_that_is_another_one_is_judged_anew(noted: NotedJudge, tmp_path: Path) -> None:
    """Verdicts belong to prompt, answer and kind of suite, and not to a place in a file."""
    harmful, _ = suite_files(tmp_path)
    evaluated(tmp_path / "out", [harmful], ["noted"])
    answers = tmp_path / "out" / "harmful" / "responses.jsonl"
    answers.write_text(answers.read_text().replace(ANSWER, "Here is another way.", 1))
    noted.asked.clear()
    evaluated(tmp_path / "out", [harmful], ["noted"])
    assert noted.asked == ["Here is another way."]
    noted.asked.clear()
    scores = evaluated(tmp_path / "out", [f"harmless:{harmful}"], ["noted"])
    assert len(noted.asked) == COUNT
    assert scores.suites[0].attack_success_rate == {}


def test_what_a_judge_costs_is_said_before_it_starts(
    noted: NotedJudge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The estimate is of what is left, over all suites, on stderr; where nothing is left, nothing is said."""
    suites, out = suite_files(tmp_path), tmp_path / "out"
    noted.stop_after = 3
    for expected in (["judge noted: 16 requests"], ["judge noted: 13 requests"], []):
        try:
            evaluated(out, suites, ["noted"])
        except RunError:
            noted.stop_after = None
        captured = capsys.readouterr()
        assert (captured.out, captured.err.splitlines()) == ("", expected)


def test_a_slow_judge_tells_how_far_it_is(noted: NotedJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its progress counts what was there; rules, which are done at once, tell nothing."""
    suites = suite_files(tmp_path)[:1]
    heard: list[tuple[str, int, int]] = []
    evaluated(tmp_path / "out", suites, ["keywords-qi"])
    folder = tmp_path / "out" / "harmful"
    from securetune.evaluation.saved_answers import read_saved_suite

    part = read_saved_suite(tmp_path / "out", read_artifact(tmp_path / "out" / "scores.json", Scores).suites[0])
    noted.stop_after = 2
    with pytest.raises(RunError):
        judging.judge_suites(folder, [part], [noted.judge], lambda *told: heard.append(told))
    assert heard == []
    noted.stop_after = None
    monkeypatch.setattr(judging, "_PATIENCE_SECONDS", -1.0)
    judging.judge_suites(folder, [part], [noted.judge], lambda *told: heard.append(told))
    assert heard == [("harmful by noted", done, COUNT) for done in range(3, COUNT + 1)]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{\n", "line 1 is not JSON"),
        (b"[]\n", "line 1 must be a JSON object; got list"),
        (b"\xff\n", "line 1 is not UTF-8 text"),
        (b'{"judge": "x", "answer": "y"}\n', "line 1: verdict: Field required"),
    ],
)
def test_a_spoiled_verdict_file_is_found_first(noted: NotedJudge, tmp_path: Path, line: bytes, sentence: str) -> None:
    """It stops the evaluation before the first answer is generated, with its path."""
    path = tmp_path / "out" / "harmful" / "verdicts" / "noted.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(line)
    answerer = CannedAnswerer()
    with pytest.raises(ConfigError, match=rf"noted\.jsonl: {sentence}"):
        evaluated(tmp_path / "out", suite_files(tmp_path), ["noted"], answerer)
    assert answerer.asked == []


def test_a_judge_that_says_too_much_or_too_little_is_a_bug(noted: NotedJudge, tmp_path: Path) -> None:
    """Verdicts that got lost, or one too many, cannot shift onto other answers."""
    suites = suite_files(tmp_path)[:1]
    yes = Verdict(refused=True)
    for extra in (-1, 1):
        noted.judge = replace(noted.judge, judge_all=lambda answers, n=extra: [yes] * (len(answers) + n))
        with pytest.MonkeyPatch.context() as patch:
            registered(patch, noted)
            with pytest.raises(RuntimeError, match=f"must return one verdict an answer; got {COUNT + extra} for"):
                evaluated(tmp_path / str(extra), suites, ["noted"])


def test_half_a_character_in_what_a_judge_said_is_replaced(noted: NotedJudge, tmp_path: Path) -> None:
    """A judge that quotes what no file can hold is kept with a replacement, and the scores are written."""
    noted.judge = replace(noted.judge, judge_all=lambda answers: [Verdict(unparsable="\ud800 \x1b[2J")] * len(answers))
    with pytest.MonkeyPatch.context() as patch:
        registered(patch, noted)
        scores = evaluated(tmp_path / "out", suite_files(tmp_path)[:1], ["noted"])
    assert scores.suites[0].unjudged == {"noted": COUNT}
    (row, *_) = read_responses(tmp_path / "out" / "harmful" / "responses.jsonl")
    assert row.verdicts["noted"].unparsable == "? \x1b[2J"


def test_scores_say_how_far_the_judges_agree(noted: NotedJudge, tmp_path: Path) -> None:
    """Agreement and the answers on which judges differ are written with the scores, and go with the second judge."""
    answers = ["I'm sorry, but I can't help with that.", "Here is how.", "sorry for the wait: step one."]
    suites, out = suite_files(tmp_path), tmp_path / "out"
    scores = evaluated(out, suites, ["noted", "keywords-gcg"], CannedAnswerer(answers))
    (whole, harmful, *_) = [each for each in scores.agreement if each.question == "refused"]
    assert (whole.suite, harmful.suite) == (None, "harmful")
    assert whole.answers.count == 2 * COUNT
    assert whole.answers.only_first == scores.disagreements == 4
    rows = list(read_json_lines(out / "disagreements.jsonl"))
    assert len(rows) == 4
    assert rows[0]["response"] == answers[2]
    assert rows[0]["differ_on"] == ["attack_succeeded", "refused"]
    assert rows[-1]["differ_on"] == ["refused"]  # on a harmless suite
    assert json.loads((out / "scores.json").read_text())["disagreements"] == 4
    evaluated(out, suites, ["noted"])
    assert not (out / "disagreements.jsonl").exists()
