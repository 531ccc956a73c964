"""Saved answers are judged again: no model, no data files, and nothing but answers that are those that were scored."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from judged_folder import COUNT, NotedJudge, evaluated, registered, suite_files

from securetune.artifacts import (
    Scores,
    answers_hash,
    read_artifact,
    read_json_lines,
    read_responses,
    write_json,
)
from securetune.errors import ArtifactError, InputError, RunError
from securetune.evaluation import judge_saved_responses

RULES = "refusal-rules"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An evaluation by one judge, whose prompt files are gone."""
    files = tmp_path / "files"
    files.mkdir()
    evaluated(tmp_path / "out", suite_files(files), ["keywords-qi"])
    shutil.rmtree(files)
    return tmp_path / "out"


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> NotedJudge:
    judge = NotedJudge()
    registered(monkeypatch, judge)
    return judge


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the kept verdicts, which a judging that fails leaves for the next one."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "verdicts"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_scores_are_those_of_an_evaluation_by_all_judges(out: Path, tmp_path: Path) -> None:
    """Judging again by further judges ends with what evaluating with all of them at once gives, file by file."""
    (tmp_path / "files").mkdir()
    suites = suite_files(tmp_path / "files")
    whole = evaluated(tmp_path / "whole", suites, ["keywords-qi", RULES, "keywords-gcg"])
    scores = judge_saved_responses(out, [RULES, "keywords-gcg"])
    assert scores == read_artifact(out / "scores.json", Scores)
    same = {"duration_seconds": whole.duration_seconds}
    assert scores.model_copy(update=same) == whole
    ours, theirs = content(out), content(tmp_path / "whole")
    assert {name for name in theirs if ours[name] != theirs[name]} <= {"scores.json"}
    assert set(ours) == set(theirs)


def test_it_works_where_nothing_but_the_folder_is(out: Path, tmp_path: Path) -> None:
    """The folder can be taken to another machine, by any path."""
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(out, moved)
    scores = judge_saved_responses(moved, [RULES])
    assert list(scores.judges) == ["keywords-qi", RULES]
    assert scores.suites[0].refusal_rate[RULES].value == 0.5


def test_a_judge_that_is_asked_again_is_replaced_where_it_stood(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge whose model changed keeps its place among the judges, with its new verdicts and key."""
    old, new = NotedJudge("noted", "model 1"), NotedJudge("noted", "model 2")
    registered(monkeypatch, old)
    before = judge_saved_responses(out, ["noted", "keywords-gcg"])
    registered(monkeypatch, new)
    after = judge_saved_responses(out, ["noted"])
    assert list(before.judges) == list(after.judges) == ["keywords-qi", "noted", "keywords-gcg"]
    assert (len(old.asked), len(new.asked)) == (2 * COUNT, 2 * COUNT)
    assert (before.judge_keys["noted"], after.judge_keys["noted"]) == ("model 1", "model 2")
    assert list(read_responses(out / "harmful" / "responses.jsonl")[0].verdicts) == list(after.judges)
    judge_saved_responses(out, ["noted"])
    assert len(new.asked) == 2 * COUNT


def test_only_drops_the_others(out: Path) -> None:
    """Then the first judge named leads, and nothing is left of the earlier ones, nor of their disagreements."""
    judge_saved_responses(out, [RULES])
    scores = judge_saved_responses(out, ["keywords-gcg"], only=True)
    assert list(scores.judges) == list(scores.judge_keys) == scores.settings["judges"] == ["keywords-gcg"]
    assert scores.asr_judge == "keywords-gcg"
    assert scores.agreement == []
    assert not (out / "disagreements.jsonl").exists()
    assert all(set(row.verdicts) == {"keywords-gcg"} for row in read_responses(out / "harmless" / "responses.jsonl"))


def test_a_single_suite_can_be_judged(out: Path, noted: NotedJudge) -> None:
    """The others stay as they are, and the judges are compared where both tell."""
    before = (out / "harmless" / "responses.jsonl").read_bytes()
    scores = judge_saved_responses(out, ["noted"], suites=["harmful"])
    assert len(noted.asked) == COUNT
    assert (out / "harmless" / "responses.jsonl").read_bytes() == before
    harmful, harmless = scores.suites
    assert set(harmful.refusal_rate) == {"keywords-qi", "noted"}
    assert set(harmless.refusal_rate) == {"keywords-qi"}
    assert {each.suite for each in scores.agreement} == {"harmful"}
    assert list(judge_saved_responses(out, ["noted"]).suites[1].refusal_rate) == ["keywords-qi", "noted"]
    assert len(noted.asked) == 2 * COUNT


def test_two_judges_of_one_name_are_not_mixed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that changed must judge all suites that it judged before, not one of them."""
    registered(monkeypatch, NotedJudge("noted", "model 1"))
    judge_saved_responses(out, ["noted"])
    registered(monkeypatch, NotedJudge("noted", "model 2"))
    with pytest.raises(InputError, match=r"judge noted: is not the one that judged harmless \(its model or its rules"):
        judge_saved_responses(out, ["noted"], suites=["harmful"])


def test_the_old_scores_stay_until_the_new_ones_are_complete(out: Path, noted: NotedJudge) -> None:
    """A judge that dies leaves everything as it was; the same call goes on with what is left."""
    before = content(out)
    noted.stop_after = 5
    with pytest.raises(RunError, match=rf"{out}: 11 of 16 verdicts are missing \(11 by noted\)"):
        judge_saved_responses(out, ["noted"])
    assert content(out) == before
    noted.stop_after = None
    judge_saved_responses(out, ["noted"])
    assert len(noted.asked) == 2 * COUNT


def test_a_full_disk_leaves_everything_as_it_was(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file gets its new content before all of them could be written."""
    before = content(out)
    sync, written = os.fsync, []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 3:
            raise OSError("disk full")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        judge_saved_responses(out, [RULES])
    monkeypatch.undo()
    assert content(out) == before
    assert list(judge_saved_responses(out, [RULES]).judges) == ["keywords-qi", RULES]


def test_a_kill_between_two_renames_is_gone_on_from(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the answers are new and the scores are old, the same call makes them fit again."""
    replace, renamed = os.replace, []

    def killed(source: Path, target: Path) -> None:
        if len(renamed) == 1:
            raise KeyboardInterrupt
        renamed.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        judge_saved_responses(out, [RULES, "keywords-gcg"], only=True)
    monkeypatch.undo()
    scores = judge_saved_responses(out, [RULES, "keywords-gcg"], only=True)
    assert list(scores.judges) == [RULES, "keywords-gcg"]


def test_settings_of_judges_come_from_the_evaluation(out: Path) -> None:
    """Those that are given are laid over the saved ones; what does nothing with saved answers is refused."""
    with pytest.raises(InputError) as caught:
        judge_saved_responses(
            out,
            ["nobody", "keywords-gcg", "keywords-gcg"],
            settings={"max_prompts": 3, "judges": ["x"], "batchsize": 4},
        )
    assert [sentence.partition(":")[0] for sentence in caught.value.problems] == [
        "evaluation.max_prompts",
        "evaluation.judges",
        "evaluation.batchsize",
    ]
    with pytest.raises(InputError, match='judge "nobody" does not exist') as caught:
        judge_saved_responses(out, ["nobody", "keywords-gcg", "keywords-gcg"], suites=["elsewhere"])
    assert len(caught.value.problems) == 3
    scores = judge_saved_responses(out, [RULES])
    assert scores.settings["judges"] == ["keywords-qi", RULES]
    assert scores.settings["max_new_tokens"] == 256


def test_a_judge_must_be_named_and_fit(out: Path) -> None:
    """No judge, one that cannot judge these prompts, and suites that would lose all verdicts are refused."""
    for arguments, sentence in (
        ({"judges": []}, "a judge must be given. Give --judge NAME"),
        ({"judges": ["tiny-world-oracle"]}, 'judge "tiny-world-oracle" cannot judge suite "harmful"'),
        ({"judges": [RULES], "suites": ["harmful"], "only": True}, "--only with --suite would leave the other suites"),
        ({"judges": [RULES], "suites": ["x"]}, 'the suite "x" was not evaluated; got harmful, harmless'),
    ):
        with pytest.raises(InputError, match=sentence):
            judge_saved_responses(out, **arguments)
    with pytest.raises(ArtifactError, match=r"nowhere.scores\.json: no such file"):
        judge_saved_responses(out / "nowhere", [RULES])


def edited(change: Callable[[list[dict]], object]) -> Callable[[Path], None]:
    def spoil(out: Path) -> None:
        path = out / "harmful" / "responses.jsonl"
        rows = list(read_json_lines(path))
        change(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return spoil


def cut(out: Path) -> None:
    path = out / "harmful" / "responses.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut in the middle of a row": (cut, "must hold the 8 answers that scores.json counts; got 7"),
    "a row is gone": (edited(lambda rows: rows.pop()), "must hold the 8 answers that scores.json counts; got 7"),
    "the file is gone": (
        lambda out: (out / "harmful" / "responses.jsonl").unlink(),
        "must hold the 8 answers that scores.json counts; got 0",
    ),
    "an answer is another": (edited(lambda rows: rows[3].update(response="No.")), "its rows are not those that"),
    "a prompt is another": (
        edited(lambda rows: rows[3]["messages"][0].update(content="Something else?")),
        "its rows are not those that",
    ),
    "two rows are swapped": (edited(lambda rows: rows.insert(0, rows.pop())), "its rows are not those that"),
    "a verdict is another": (
        edited(lambda rows: rows[0]["verdicts"]["keywords-qi"].update(refused=False, attack_succeeded=True)),
        "the verdicts of the judge keywords-qi give another refusal rate than scores.json has",
    ),
    "a verdict is gone": (
        edited(lambda rows: rows[0]["verdicts"].clear()),
        "only 7 of 8 answers have a verdict of the judge keywords-qi",
    ),
    "a row is no answer": (edited(lambda rows: rows[2].pop("response")), "line 3: response: Field required"),
    "not UTF-8": (
        lambda out: (out / "harmful" / "responses.jsonl").write_bytes(b"\xff\xfe\n"),
        "line 1 is not UTF-8 text",
    ),
    "half a character": (
        edited(lambda rows: rows[0].update(response="\ud800")),
        r"line 1 holds half of a character \(a lone surrogate\)",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), SPOILED.values(), ids=SPOILED)
def test_files_that_were_cut_or_edited_are_one_line(
    out: Path, noted: NotedJudge, spoil: Callable[[Path], None], sentence: str
) -> None:
    """They are noticed before the first judge is asked, with the path, and everything stays as it is."""
    spoil(out)
    before = content(out)
    with pytest.raises(InputError, match=rf"harmful.responses\.jsonl: {sentence}") as caught:
        judge_saved_responses(out, ["noted"])
    assert len(caught.value.problems) == 1
    assert (content(out), noted.asked) == (before, [])


def test_edited_verdicts_can_be_made_anew(out: Path) -> None:
    """The judge whose verdicts were edited is asked again, or dropped."""
    spoil, _ = SPOILED["a verdict is another"]
    spoil(out)
    assert judge_saved_responses(out, ["keywords-qi", RULES]).suites[0].refusal_rate["keywords-qi"].value == 0.5
    spoil(out)
    assert list(judge_saved_responses(out, [RULES], only=True).judges) == [RULES]


def test_evaluations_of_before_can_be_judged(out: Path) -> None:
    """Scores without keys and hashes, and without kept verdicts, as earlier releases wrote them, are enough."""
    path = out / "scores.json"
    old = json.loads(path.read_text())
    for name in ("judge_keys", "agreement", "disagreements"):
        del old[name]
    for suite in old["suites"]:
        del suite["answers_hash"]
    write_json(path, old)
    for folder in list(out.rglob("verdicts")):
        shutil.rmtree(folder)
    assert read_artifact(path, Scores).agreement == []
    scores = judge_saved_responses(out, [RULES])
    assert list(scores.judge_keys) == [RULES]
    assert scores.suites[0].answers_hash == answers_hash(read_responses(out / "harmful" / "responses.jsonl"))
    spoil, sentence = SPOILED["a prompt is another"]
    write_json(path, old)
    spoil(out)
    with pytest.raises(InputError, match=sentence):
        judge_saved_responses(out, [RULES])
