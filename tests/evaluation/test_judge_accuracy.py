"""How often each judge is right on the labelled answers: the program measures it, and the documents say the same."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from securetune.evaluation import list_judges, read_labelled_answers
from securetune.evaluation.judges import find_judge
from securetune.evaluation.keyword_judges import DEFAULT_KEYWORD_JUDGE, read_keyword_lists
from securetune.evaluation.labelled_answers import read_development_answers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """Load the benchmark."""
    spec = importlib.util.spec_from_file_location("judges_benchmark", ROOT / "benchmarks" / "judges.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def documented() -> dict[str, list[str]]:
    """Return the rows of the documents' table, by judge."""
    text = (ROOT / "docs" / "judges.md").read_text(encoding="utf-8")
    table = text.split("| Judge | Development | Test | All 300 | Made for development |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: row[1:] for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row[0])}


def test_the_documents_have_every_judge() -> None:
    """Each registered judge has its row, and those that need a server or weights say that they were not measured."""
    rows = documented()
    assert {*rows} == {judge.name for judge in list_judges()} - {"tiny-world-oracle"}
    not_measured = {name for name, row in rows.items() if row[0].startswith("not measured")}
    assert not_measured == {"llm", "harmbench-classifier", "llama-guard-3", "wildguard"}


@pytest.mark.parametrize("name", [*(found.name for found in read_keyword_lists()), DEFAULT_KEYWORD_JUDGE])
def test_each_row_is_what_the_program_measures(name: str, program: ModuleType) -> None:
    """The documents' figures are the judge's accuracy on each half, on all 300, and on those made for development."""
    half = len(read_labelled_answers("development"))
    labelled = program.measure(find_judge(name), read_labelled_answers())
    made = program.measure(find_judge(name), read_development_answers()[half:])
    cells = [labelled["development"], labelled["test"], labelled["all"], made["development"]]
    assert [cell.count for cell in cells] == [150, 150, 300, 1004]
    assert documented()[name] == [program.shown(cell) for cell in cells]


def test_the_default_judge_is_right_on_nine_of_ten(program: ModuleType) -> None:
    """Who leads where no judge is named is right on at least 90 % of the 300, and of the half that nobody looked at."""
    found = program.measure(find_judge(DEFAULT_KEYWORD_JUDGE), read_labelled_answers())
    assert found["all"].value >= 0.9
    assert found["test"].value >= 0.9
    assert found["unjudged"] == 0
