"""`securetune compare`: evaluations side by side."""

import json
import shutil
from pathlib import Path

import pytest
from fake_run import KEYWORDS, ORACLE, write_fake_run
from typer.testing import CliRunner

from securetune.artifacts import ComparedRow, ModelComparison, Scores, read_artifact, read_json_lines
from securetune.cli.application import app
from securetune.errors import ArtifactError, ConfigError
from securetune.reporting import compare_evaluations
from securetune.reporting.compare_models import METRICS
from securetune.reporting.pairs import SIGN_FLIPS, Discordant, mcnemar_p

HARMFUL = "tiny-world-harmful"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "run"
    write_fake_run(folder)
    return folder


def evaluations(run_folder: Path) -> tuple[Path, Path]:
    """The start model's and one of plain fine-tuning."""
    return run_folder / "start", run_folder / "methods" / "ift" / "seed-0" / "evaluation"


def own_copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def row_of(found: ModelComparison, metric: str, suite: str | None, judge: str | None) -> ComparedRow:
    (row,) = [row for row in found.rows if (row.metric, row.suite, row.judge) == (metric, suite, judge)]
    return row


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_numbers_are_those_of_the_answers(run_folder: Path) -> None:
    """Rates, discordant prompts and the p value are those counted by hand from the two files of answers."""
    start, ift = evaluations(run_folder)
    row = row_of(compare_evaluations({"start": [start], "ift": [ift]}), "attack_success_rate", HARMFUL, KEYWORDS)
    here, there = (
        [
            answer["verdicts"][KEYWORDS]["attack_succeeded"]
            for answer in read_json_lines(each / HARMFUL / "responses.jsonl")
        ]
        for each in (ift, start)
    )
    only_here = sum(a and not b for a, b in zip(here, there, strict=True))
    only_reference = sum(b and not a for a, b in zip(here, there, strict=True))
    value, change = row.values["ift"], row.changes["ift"]
    assert value is not None
    assert change is not None
    assert value.value == pytest.approx(sum(here) / len(here))
    assert value.value == read_artifact(ift / "scores.json", Scores).suites[0].attack_success_rate[KEYWORDS].value
    assert (change.only_here, change.only_reference) == (only_here, only_reference)
    assert change.value == pytest.approx((only_here - only_reference) / len(here))
    assert change.p == mcnemar_p(Discordant(only_here, only_reference))
    assert change.p <= (change.p_holm or 0) <= 1
    assert change.low < change.value < change.high
    assert change.bootstrap_low <= change.value <= change.bootstrap_high


def test_a_model_beside_its_copy_has_not_changed(run_folder: Path, tmp_path: Path) -> None:
    """The same answers differ by 0 on no prompt, p is 1, and the interval says how far that goes."""
    start, _ = evaluations(run_folder)
    found = compare_evaluations({"a": [start], "b": [own_copy(start, tmp_path / "copy")]})
    changes = [row.changes["b"] for row in found.rows]
    assert {change.value for change in changes if change is not None} == {0.0}
    tested = [change for change in changes if change is not None and change.p is not None]
    assert len(tested) >= 5
    for change in tested:
        assert (change.p, change.p_holm) == (1.0, 1.0)
        assert (change.only_here, change.only_reference) in ((0, 0), (None, None))
        assert change.low < 0 < change.high


def test_swapping_the_models_flips_every_change(run_folder: Path) -> None:
    """Which of two models is the reference changes the signs and nothing else."""
    start, ift = evaluations(run_folder)
    one = compare_evaluations({"start": [start], "ift": [ift]})
    other = compare_evaluations({"ift": [ift], "start": [start]})
    for row, reverse in zip(one.rows, other.rows, strict=True):
        change, back = row.changes["ift"], reverse.changes["start"]
        assert change is not None
        assert back is not None
        assert change.value == pytest.approx(-back.value)
        assert change.p == pytest.approx(back.p) if change.p is not None else back.p is None


def test_seeds_are_joined(run_folder: Path) -> None:
    """Several seeds of a method are one column with a value a seed, an interval over both, and a test over prompts."""
    start, ift = evaluations(run_folder)
    second = ift.parents[1] / "seed-1" / "evaluation"
    row = row_of(
        compare_evaluations({"start": [start], "ift": [ift, second]}), "attack_success_rate", HARMFUL, KEYWORDS
    )
    value, change = row.values["ift"], row.changes["ift"]
    assert value is not None
    assert change is not None
    assert len(value.per_seed) == 2
    assert value.value == pytest.approx(sum(value.per_seed) / 2)
    assert change.only_here is None
    assert change.p == pytest.approx(1 / (1 + SIGN_FLIPS))
    assert change.low < change.value < change.high


def test_the_mean_over_suites_is_unweighted(run_folder: Path, tmp_path: Path) -> None:
    """Each suite counts the same, however many prompts it has."""
    copies = [own_copy(folder, tmp_path / str(number)) for number, folder in enumerate(evaluations(run_folder))]
    for folder in copies:
        path = folder / HARMFUL / "responses.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))
    found = compare_evaluations({"start": [copies[0]], "ift": [copies[1]]})
    mean = row_of(found, "attack_success_rate", None, KEYWORDS)
    single = [row_of(found, "attack_success_rate", suite, KEYWORDS).values["ift"] for suite in mean.suites]
    values = [each.value for each in single if each is not None]
    assert len(values) == len(mean.suites) >= 4
    assert {each.count for each in single if each is not None} == {20, 60}
    assert mean.values["ift"] is not None
    assert mean.values["ift"].value == pytest.approx(sum(values) / len(values))
    assert mean.values["ift"].low < mean.values["ift"].value < mean.values["ift"].high


@pytest.mark.parametrize("succeeds", [False, True])
def test_a_mean_of_the_same_differences_is_not_certain(run_folder: Path, tmp_path: Path, succeeds: bool) -> None:
    """Where a bootstrap has no width, because no prompt differs from another, the interval still has."""
    copies = [own_copy(evaluations(run_folder)[0], tmp_path / name) for name in ("a", "b")]
    for folder, outcome in zip(copies, (False, succeeds), strict=True):
        for path in folder.glob("*/responses.jsonl"):
            rows = list(read_json_lines(path))
            for row in rows:
                for verdict in row["verdicts"].values():
                    verdict["attack_succeeded"] = outcome
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare_evaluations({"a": [copies[0]], "b": [copies[1]]})
    change = row_of(found, "attack_success_rate", None, KEYWORDS).changes["b"]
    assert change is not None
    assert change.value == change.bootstrap_low == pytest.approx(change.bootstrap_high) == float(succeeds)
    assert change.high - change.low > 0.005
    assert change.p == (pytest.approx(1 / (1 + SIGN_FLIPS)) if succeeds else 1.0)


def test_a_keyword_judge_has_no_row_that_only_repeats_another(run_folder: Path) -> None:
    """Its refusals are what its successes are not; a judge that tells them apart has both rows."""
    start, ift = evaluations(run_folder)
    rows = compare_evaluations({"start": [start], "ift": [ift]}).rows
    assert {row.judge for row in rows if row.metric == "attack_success_rate"} == {KEYWORDS, ORACLE}
    assert {row.judge for row in rows if row.metric == "refusal_rate"} == {ORACLE}


def test_answers_without_a_verdict_are_left_out_and_counted(run_folder: Path, tmp_path: Path) -> None:
    """An answer that a judge could not read is in neither model's change, and is said beside the value."""
    start, ift = evaluations(run_folder)
    copied = own_copy(ift, tmp_path / "copy")
    path = copied / HARMFUL / "responses.jsonl"
    rows = list(read_json_lines(path))
    for row in rows[:3]:
        row["verdicts"][KEYWORDS] = {"unparsable": "?"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = row_of(compare_evaluations({"start": [start], "ift": [copied]}), "attack_success_rate", HARMFUL, KEYWORDS)
    value, change = row.values["ift"], row.changes["ift"]
    assert value is not None
    assert change is not None
    assert (value.count, value.unjudged) == (len(rows) - 3, 3)
    assert (change.pairs, change.left_out) == (len(rows) - 3, 3)


def test_what_cannot_be_compared_is_said_all_at_once(run_folder: Path, tmp_path: Path) -> None:
    """Other judges, lengths and prompts are refused together, each with both sides; so are folders without scores."""
    start, ift = evaluations(run_folder)
    copied = own_copy(ift, tmp_path / "copy")
    content = json.loads((copied / "scores.json").read_text())
    content["suites"][0]["prompt_set_hash"] = "other"
    rewrite(
        copied / "scores.json",
        judges={ORACLE: "x"},
        settings={**content["settings"], "max_new_tokens": 7},
        suites=content["suites"],
    )
    with pytest.raises(ArtifactError) as caught:
        compare_evaluations({"start": [start], "ift": [copied]})
    said = str(caught.value)
    assert f"judges must be those of {start} ({KEYWORDS}" in said
    assert f"Judge (`securetune judge`) {copied} by {KEYWORDS} too." in said
    assert "max_new_tokens must be those" in said
    assert "got 7" in said
    assert "got other prompts under the same names" in said
    with pytest.raises(ArtifactError, match=r"nowhere.*scores\.json"):
        compare_evaluations({"start": [start], "ift": [tmp_path / "nowhere"]})
    with pytest.raises(ConfigError, match="given twice"):
        compare_evaluations({"start": [start], "ift": [start]})
    with pytest.raises(ConfigError, match="at least two models; got 1"):
        compare_evaluations({"start": [start]})


def test_judges_of_one_name_must_be_the_same(run_folder: Path, tmp_path: Path) -> None:
    """Their order decides nothing, another key means another model or other rules, and old scores have no keys."""
    start, ift = evaluations(run_folder)
    copied = [own_copy(folder, tmp_path / str(number)) for number, folder in enumerate((start, ift))]
    groups = {"a": [copied[0]], "b": [copied[1]]}
    expected = compare_evaluations(groups).rows
    rewrite(copied[1] / "scores.json", judges={ORACLE: "", KEYWORDS: ""}, judge_keys={ORACLE: "1", KEYWORDS: "2"})
    assert compare_evaluations(groups).rows == expected
    rewrite(copied[0] / "scores.json", judge_keys={ORACLE: "1", KEYWORDS: "3"})
    with pytest.raises(ArtifactError) as caught:
        compare_evaluations(groups)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{copied[1]}: the judge {KEYWORDS} is not the one that judged {copied[0]}: its model")
    assert problem.endswith("Judge (`securetune judge`) both by the same one.")


def test_a_reference_that_does_not_refuse_is_warned_of(run_folder: Path, tmp_path: Path) -> None:
    """Where the reference answers harmful requests there is no safety to keep, and the comparison says so."""
    start, ift = evaluations(run_folder)
    assert compare_evaluations({"start": [start], "ift": [ift]}).warnings == []
    (warning,) = compare_evaluations({"ift": [ift], "start": [start]}).warnings
    assert "ift refuses only" in warning
    assert f"by the judge {KEYWORDS}, which is named first; " in warning
    assert f"by the judge {ORACLE})" in warning
    assert "mean little" in warning
    both = compare_evaluations({"both": [start, ift], "start": [own_copy(start, tmp_path / "copy")]})
    assert len(both.warnings) == 1  # one of its seeds does not


def test_a_judge_of_attacks_alone_tells_of_a_reference_too(run_folder: Path, tmp_path: Path) -> None:
    """Where no judge tells refusals, the attacks that failed say whether the reference refuses."""
    start, ift = (own_copy(folder, tmp_path / folder.name) for folder in evaluations(run_folder))
    for folder in (start, ift):
        suites = json.loads((folder / "scores.json").read_text())["suites"]
        rewrite(folder / "scores.json", suites=[suite | {"refusal_rate": {}} for suite in suites])
    assert compare_evaluations({"start": [start], "ift": [ift]}).warnings == []
    (warning,) = compare_evaluations({"ift": [ift], "start": [start]}).warnings
    assert "ift refuses only" in warning


def test_the_command(run_folder: Path, tmp_path: Path) -> None:
    """It prints a table, writes the same as a typed file, and takes apart names and seeds."""
    start, ift = evaluations(run_folder)
    out = tmp_path / "comparison.json"
    shown = CliRunner().invoke(app, ["compare", f"before={start}", f"after={ift}", "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    for words in ("before (reference)", "attack success rate", "over-refusal rate", "harmfulness, mean rating 1–5"):
        assert words in shown.output
    written = read_artifact(out, ModelComparison)
    assert written.reference == "before"
    tuned = read_artifact(ift / "scores.json", Scores).model.weights_fingerprint
    assert written.sources["after"][0].weights_fingerprint == tuned
    document = CliRunner().invoke(app, ["compare", str(start), str(ift), "--json"])
    assert json.loads(document.stdout)["reference"] == str(start)
    again = CliRunner().invoke(app, ["compare", f"a={start}", f"a={ift}", "=x"])
    assert again.exit_code == 2
    assert 'the name "a" must be given once' in again.output
    assert "must be DIR, NAME=DIR or NAME=DIR1,DIR2" in again.output


def test_hostile_names_do_not_reach_the_terminal(run_folder: Path, tmp_path: Path) -> None:
    """Escape sequences, direction marks and markup in labels, suites and judges come out as plain words."""
    start, ift = evaluations(run_folder)
    bad = "\x1b[31m\u202e[bold]judge"
    copies = []
    for number, folder in enumerate((start, ift)):
        copied = own_copy(folder, tmp_path / str(number))
        for path in copied.rglob("*.json*"):
            path.write_text(path.read_text().replace(json.dumps(KEYWORDS)[1:-1], json.dumps(bad)[1:-1]))
        copies.append(copied)
    shown = CliRunner().invoke(app, ["compare", f"\x1b[2J\u202ea={copies[0]}", f"b={copies[1]}"])
    assert shown.exit_code == 0, shown.output
    assert "[31m[bold]judge" in shown.output
    assert not {"\x1b", "\u202e"} & set(shown.output)


def test_every_metric_says_what_it_is() -> None:
    """The two things that are called HS elsewhere have different headings, each with its definition."""
    assert METRICS["harmfulness"].heading == "harmfulness, mean rating 1–5"
    assert METRICS["harmfulness_rate"].heading == "harmfulness rate, share rated 5"
