"""The report's section on its judges: how far they agree, and answers on which they differ."""

import json
import re
from pathlib import Path

import pytest
from fake_run import KEYWORDS, METHODS, ORACLE, write_fake_run
from test_report import HOSTILE, Page

from securetune.artifacts import Comparison, over_all_suites, read_artifact, read_json_lines
from securetune.reporting import write_report

ONE = {"ift": METHODS["ift"]}


def section(text: str) -> str:
    found = re.search(r'<section id="judges">.*?</section>', text, re.DOTALL)
    return found[0] if found else ""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("judged") / "run", ONE, seeds=(0, 1), prompts=30, with_analysis=False)


def test_agreement_is_shown_with_its_counts(run_folder: Path) -> None:
    """The table has each pair's agreement, κ and the two cells on which they differ, and four of the answers."""
    text = write_report(run_folder).read_text(encoding="utf-8")
    (attacks, refusals) = over_all_suites(read_artifact(run_folder / "comparison.json", Comparison).agreement)
    assert (attacks.first, attacks.second, attacks.answers.count) == (KEYWORDS, ORACLE, 3 * 4 * 30)
    assert attacks.answers.kappa is not None
    shown = section(text)
    page = Page(shown)
    for words in (
        f"{attacks.answers.share.value:.1%}",
        f"{attacks.answers.kappa:.2f}",
        f"{attacks.answers.only_first} answers on which judges differ; below are 4",
        "attack succeeded",
        "no successful attack",
        "harmfulness 2 of 5",
    ):
        assert words in page.text, words
    assert f"<td>{attacks.answers.only_first}</td>\n<td>0</td>" in shown
    assert refusals.answers.share.value == 1.0
    assert page.tags["h4"] == 4
    assert '<a href="#judges">' in text


def test_one_judge_has_nothing_to_agree_with(tmp_path: Path) -> None:
    """Without a second judge that tells, there is no section and no link to one."""
    run = write_fake_run(tmp_path, ONE, seeds=(0,), prompts=10, with_rating=False, with_analysis=False)
    text = write_report(run).read_text(encoding="utf-8")
    assert section(text) == ""
    assert "#judges" not in text
    assert read_artifact(tmp_path / "comparison.json", Comparison).agreement == []


def test_judges_that_agree_on_everything_have_no_examples(tmp_path: Path) -> None:
    """It says that there is no answer on which they differ, and that κ is not defined where it is not."""
    run = write_fake_run(tmp_path, {}, prompts=10, with_analysis=False, with_search=False)
    for path in run.rglob("responses.jsonl"):
        rows = list(read_json_lines(path))
        for row in rows:
            row["verdicts"] = {judge: {"refused": True, "attack_succeeded": False} for judge in (KEYWORDS, ORACLE)}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(section(write_report(run).read_text(encoding="utf-8")))
    assert "There is no answer on which they differ." in page.text
    assert "not defined: both always say the same" in page.text


def test_hostile_answers_and_judges_are_text(tmp_path: Path) -> None:
    """Markup, escape sequences, direction marks and endless lines in answers and names of judges do no harm."""
    bad = "<b>\x1b[31m\u202e\x9bjudge{{ 7 * 7 }}"
    answer = f"{HOSTILE} \x9b2J \u2066 {{{{ 7 * 7 }}}} \x00" + "x" * 100_000
    run = write_fake_run(tmp_path, ONE, seeds=(0,), prompts=20, answer=answer, with_analysis=False)
    for path in run.rglob("*.json*"):
        path.write_text(path.read_text().replace(json.dumps(KEYWORDS)[1:-1], json.dumps(bad)[1:-1]))
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags["script"] == page.tags["img"] == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    shown = Page(section(text))
    assert "<b>[31mjudge{{ 7 * 7 }}" in shown.text
    assert "<script>alert(1)</script> [31mred esrever &amp; <img src=x onerror=y>" in shown.text
    assert "{{ 7 * 7 }} xxx" in shown.text
    assert "x" * 1_000 not in text
