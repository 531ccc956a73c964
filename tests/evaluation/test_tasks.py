"""Tasks: files of the user under each rule, and the published ones from their real files."""

import gzip
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from public_data import public_data_folder

from securetune.data.prompts import Prompt
from securetune.errors import DataError
from securetune.evaluation import load_task
from securetune.evaluation.suites import prompt_set_hash
from securetune.evaluation.tasks import FAMILIES, list_tasks, mark
from securetune.evaluation.tasks.pubmedqa import CHOICES

REAL = {
    "gsm8k": (1319, "24299432a1ef"),
    "pubmedqa": (500, "9bdebaff5e64"),
    "pubmedqa@train": (500, "56e63ed0c45b"),
    "pubmedqa@full": (1000, "d0c52d6b8f9f"),
}
"""Task → number of prompts and the beginning of their hash; a change of either needs a new version of the task."""


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def rows_of(answer: Any, choices: Any = None) -> list[dict[str, Any]]:
    row = {"prompt": "Rome or Paris? A. Rome B. Paris", "answer": answer}
    return [row if choices is None else {**row, "choices": choices}]


def marked(rule, answer: str, response: str, choices: list[str] | None = None, text: str = "q"):
    return mark(
        rule, Prompt("1", ({"role": "user", "content": text},), {"answer": answer, "choices": choices}), response
    )


@pytest.mark.parametrize("name", REAL)
def test_real_files_give_the_published_questions(name: str) -> None:
    """Each public file is found, has the published number of questions, and always gives the same ones."""
    task = load_task(name, data_dir=str(public_data_folder()))
    assert (len(task.prompts), prompt_set_hash(task.prompts)[:12]) == REAL[name]
    assert task.version == f"{name if '@' in name else f'{name}@test'}/1"
    assert task.rule == ("numeric" if name == "gsm8k" else "choice")


def test_gsm8k_marks_its_own_solutions_right() -> None:
    """All 1,319 reference solutions are right by the rule, and the first question and its answer are upstream's."""
    task = load_task("gsm8k", data_dir=str(public_data_folder()))
    assert task.prompts[0].text.startswith("Janet\u2019s ducks lay 16 eggs per day.")
    assert task.prompts[0].metadata["answer"] == "18"
    found = [mark("numeric", prompt, prompt.metadata["solution"]) for prompt in task.prompts]
    assert all(each.correct for each in found)
    without_mark = [prompt.metadata["solution"].rpartition("####")[0] for prompt in task.prompts]
    last_numbers = [mark("numeric", p, text).correct for p, text in zip(task.prompts, without_mark, strict=True)]
    assert sum(last_numbers) / len(last_numbers) > 0.9  # most solutions also end with the number itself


def test_gsm8k_train_is_read_from_its_file(tmp_path: Path) -> None:
    """The training questions, from a file that is named, have the published count."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(gzip.decompress((public_data_folder() / "gsm8k" / "train.jsonl.gz").read_bytes()))
    task = load_task(f"gsm8k@train={path}")
    assert (task.name, task.version, len(task.prompts)) == ("gsm8k@train", "gsm8k@train/1", 7473)


def test_pubmedqa_splits_are_the_official_ones() -> None:
    """Test and training share no question and together are the file; the answers are the official ones."""
    folder = str(public_data_folder())
    test, train, full = (load_task(f"pubmedqa@{split}", data_dir=folder).prompts for split in ("test", "train", "full"))
    assert {p.id for p in test} | {p.id for p in train} == {p.id for p in full}
    assert Counter(p.metadata["answer"] for p in test) == {"yes": 276, "no": 169, "maybe": 55}
    truth = json.loads((Path(folder) / "pubmedqa" / "test_ground_truth.json").read_text())
    assert {p.id.partition(":")[2]: p.metadata["answer"] for p in test} == truth


def test_pubmedqa_shows_the_abstract_and_what_may_be_answered() -> None:
    """The prompt is the abstract without its conclusion, the question, and the three answers; each is marked right."""
    task = load_task("pubmedqa@full", 1, str(public_data_folder()))
    (prompt,) = task.prompts
    assert prompt.text.startswith("Abstract: Programmed cell death (PCD) is the regulated death")
    assert prompt.text.endswith(
        "\n\nQuestion: Do mitochondria play a role in remodelling lace plant leaves during programmed cell death?\n"
        "Answer with yes, no or maybe."
    )
    assert [mark("choice", prompt, answer).correct for answer in CHOICES] == [True, False, False]


def test_every_published_task_states_its_facts() -> None:
    """Version, a count for each split, licence, paper and repository are there, and no family was left out."""
    published = [task for task in list_tasks() if task.published is not None]
    assert len(published) == len(FAMILIES) == 2
    for task in published:
        assert task.facts is not None
        assert tuple(task.facts.counts) == task.splits
        assert task.facts.licence
        assert "arXiv" in task.facts.paper
        assert task.facts.repository.startswith("https://")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gsm8k",
            'task "gsm8k": its file is needed, but no data folder is named. Get it from https://github.com/openai',
        ),
        ("gsm8k=absent", 'task "gsm8k": absent: no such file or folder'),
        ("gsm8k=", 'task "gsm8k": a file, a folder or a hub name must follow'),
        ("gsm8l=x", 'task "gsm8l" is not registered, so it can have no "=x". Did you mean "gsm8k"?'),
        ("gsm8k@dev", 'task "gsm8k" has no split "dev"; it has test, train'),
        ("numeric:gsm8k", 'task "gsm8k" is marked by its own rule, numeric; leave out "numeric:"'),
        ("tiny-world-query=x", 'task "tiny-world-query" is built in and has no file'),
        ("numeric:absent.jsonl", 'task "absent.jsonl" is neither a registered task nor a file'),
        ("pubmedqa=hub:", "a data set does not say what is test. Give pubmedqa@full=hub:"),
    ],
)
def test_names_that_cannot_be_used_are_explained(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake in a task's name gives one sentence that says what to do."""
    monkeypatch.delenv("SECURETUNE_DATA", raising=False)
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        load_task(name)


def test_a_hub_data_set_gives_the_same_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gsm8k=hub:` asks for the owner's data set of the split; PubMedQA's nested hub form gives the file's prompt."""
    asked: list[str] = []
    gsm8k = [{"question": "1 + 1?", "answer": "#### 2"}]
    pubmedqa = [{"pubid": 7, "question": "So?", "context": {"contexts": ["a", "b"]}, "final_decision": "yes"}]

    def rows(source: str) -> list[dict[str, Any]]:
        asked.append(source)
        return gsm8k if "gsm8k" in source else pubmedqa

    monkeypatch.setattr("securetune.evaluation.published_files.read_data_set_rows", rows)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*whose published file has")
        first, second = load_task("gsm8k@train=hub:"), load_task("pubmedqa@full=hub:me/mine:train")
    assert asked == ["hub:openai/gsm8k#main:train", "hub:me/mine:train"]
    assert first.prompts[0].metadata["answer"] == "2"
    assert second.prompts[0].text == "Abstract: a\nb\n\nQuestion: So?\nAnswer with yes, no or maybe."
    assert second.prompts[0].id == "pubmedqa:7"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "q"}', "needs the columns question, answer; found question. Its file is JSON lines"),
        ('{"question": "q", "answer": "7"}', "row 1: `answer` must be a solution that ends with #### and the number"),
        ('{"question": "q", "answer": "#### x"}', "row 1: `answer` must be one number"),
        ('{"question": "", "answer": "#### 1"}', "row 1: must be a text that is not empty"),
        ('{"question": "q", "answer": "#### 1"}\n[]', "line 2: must be a JSON object; got list"),
        ("{", "line 1: cannot be read as JSON"),
    ],
)
def test_a_broken_gsm8k_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """A file of another shape gives one line with the row."""
    path = write_rows(tmp_path / "test.jsonl", [content])
    with pytest.raises(DataError, match=message):
        load_task(f"gsm8k={path}")


@pytest.mark.parametrize(
    ("questions", "truth", "message"),
    [
        ([], {}, "must be a JSON object of id > question; got list"),
        ({"1": 3}, {"1": "yes"}, "'1' must be an object; got int"),
        ({"1": {"QUESTION": "q", "CONTEXTS": ["a"], "final_decision": "yes"}}, {"2": "yes"}, "names 1 questions that"),
        (
            {"1": {"QUESTION": "q", "CONTEXTS": ["a"], "final_decision": "yes"}},
            None,
            "test_ground_truth.json: no such file",
        ),
        (
            {"1": {"QUESTION": "q", "CONTEXTS": [], "final_decision": "yes"}},
            {"1": "yes"},
            "row 1: `CONTEXTS` must be a",
        ),
        (
            {"1": {"QUESTION": 3, "CONTEXTS": ["a"], "final_decision": "yes"}},
            {"1": "yes"},
            "row 1: `QUESTION` must be a",
        ),
        (
            {"1": {"QUESTION": "q", "CONTEXTS": ["a"], "final_decision": "so"}},
            {"1": "so"},
            "`answer` must be one of the",
        ),
    ],
)
def test_a_broken_pubmedqa_file_is_refused(tmp_path: Path, questions: Any, truth: Any, message: str) -> None:
    """Files of another shape, or that do not fit together, give one line."""
    (tmp_path / "ori_pqal.json").write_text(json.dumps(questions))
    if truth is not None:
        (tmp_path / "test_ground_truth.json").write_text(json.dumps(truth))
    with pytest.raises(DataError, match=message):
        load_task(f"pubmedqa={tmp_path}")


def test_the_rule_is_named_or_recognised(tmp_path: Path) -> None:
    """`choices` in every row make it a choice; numbers are compared as numbers only where the user says so."""
    plain = write_rows(tmp_path / "sums.jsonl", [{"prompt": "6 * 7?", "answer": 42}])
    chosen = write_rows(tmp_path / "cities.jsonl", rows_of("B", ["Rome", "Paris"]))
    assert load_task(str(plain)).rule == "exact-match"
    assert load_task(f"numeric:{plain}").rule == "numeric"
    assert load_task(str(chosen)).rule == "choice"
    assert load_task(f"exact-match:{chosen}").rule == "exact-match"
    assert (load_task(f"numeric:{plain}").name, load_task(f"numeric:{plain}").version) == ("sums", None)
    assert load_task(f"numeric:{plain}").prompts[0].metadata["answer"] == "42"


@pytest.mark.parametrize(
    ("rule", "rows", "problems"),
    [
        ("numeric:", [*rows_of("1"), "", *rows_of("x")], ["row 3: `answer` must be one number"]),
        ("numeric:", [*rows_of(True), *rows_of(None)], ["row 1: `answer` must be one", "row 2: `answer` must be one"]),
        ("", rows_of("C", ["Rome", "Paris"]), ["row 1: `answer` must be one of the choices, or its letter; got 'C'"]),
        ("", rows_of(1, ["Rome", "Paris"]), ["row 1: `answer` must be one of the choices, or its letter; got '1'"]),
        ("", rows_of("A", ["Rome"]), ["row 1: `choices` must hold 2 to 26 options; got 1"]),
        ("", rows_of("A", ["Rome", " rome "]), ["row 1: `choices` must all differ"]),
        ("", rows_of("A", "Rome"), ["row 1: `choices` must be a list of texts; got 'Rome'"]),
        ("choice:", rows_of("A"), ["row 1: `choices` must be a list of texts; got none"]),
        (
            "",
            [*rows_of("A", ["Rome", "Paris"]), *rows_of("A")],
            ["`choices` must be in every row or in none; missing in"],
        ),
    ],
)
def test_rows_that_cannot_be_marked_are_named(tmp_path: Path, rule: str, rows: list[Any], problems: list[str]) -> None:
    """Before anything is generated, each bad row is named with what its rule requires."""
    path = write_rows(tmp_path / "task.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_task(f"{rule}{path}")
    assert len(caught.value.problems) == len(problems)
    assert all(part in found for part, found in zip(problems, caught.value.problems, strict=True))


def test_prompts_that_hide_their_options_are_warned_of(tmp_path: Path) -> None:
    """A prompt is sent as it is, so one that does not show its options is worth a line."""
    path = write_rows(tmp_path / "task.jsonl", [*rows_of("A", ["Rome", "Paris"]), *rows_of("A", ["Oslo", "Bern"])])
    with pytest.warns(UserWarning, match="1 of 2 prompts do not show all their `choices`, such as row 2"):
        task = load_task(str(path))
    assert len(task.prompts) == 2  # it is a warning, no refusal


def test_marks_say_what_was_read() -> None:
    """A mark holds the right answer and what was read; letters count if the prompt shows them or the answer is one."""
    assert marked("numeric", "1,234.50", "about $1234.5 in all") == ("1234.5", True, "1234.5")
    assert marked("numeric", "1/3", "0.33") == ("1/3", False, "0.33")
    assert marked("numeric", "5", "none") == ("5", False, None)
    assert marked("choice", "Rome", "(A)", ["Rome", "Paris"], "A. Rome B. Paris") == ("Rome", True, "Rome")
    assert marked("choice", "Rome", "(A)", ["Rome", "Paris"], "Rome or Paris?") == ("Rome", False, None)
    assert marked("choice", "B", "(A)", ["Rome", "Paris"], "Rome or Paris?") == ("Paris", False, "Rome")
    assert marked("choice", "B", "B", ["B", "A"], "A. B B. A") == ("B", True, "B")
    assert marked("exact-match", "a b", " a  b") == ("a b", True, None)
