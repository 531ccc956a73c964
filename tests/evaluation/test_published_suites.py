"""Published suites: the real files where they are present, and handmade ones in upstream's format."""

import csv
import json
import warnings
from collections import Counter
from pathlib import Path

import pytest
from public_data import public_data_folder

from securetune.errors import DataError
from securetune.evaluation import list_suites, load_suite
from securetune.evaluation.suites import DATA_VARIABLE, FAMILIES, prompt_set_hash

REAL = {
    "advbench": (110, "d7398ae48402"),
    "advbench@full": (520, "46614947cec1"),
    "catqa": (110, "07a88de7971c"),
    "catqa@full": (550, "62904e91e5fd"),
    "harmfulqa": (1960, "4fcf270db1ff"),
    "dangerousqa": (200, "45c3bcaa614f"),
    "jailbreakbench": (100, "da7c56fce9f4"),
    "xstest": (250, "b7893a1c1501"),
    "xstest-unsafe": (200, "a37c05e4997f"),
    "i-maliciousinstructions": (100, "a6ef59e04dbe"),
    "i-cona": (178, "dc7acf36bb79"),
    "i-controversial": (40, "26ac04ab4775"),
    "i-physicalsafetyunsafe": (100, "20707c6436f6"),
    "i-physicalsafetysafe": (100, "73d751d69edf"),
    "q-harm": (100, "78da62398c44"),
    "i-alpaca": (50, "377181e857c1"),
}
"""Suite → number of prompts and the beginning of their hash; a change of either needs a new version of the suite."""

HARMLESS = {"xstest", "i-physicalsafetysafe", "i-alpaca", "jailbreakbench-benign"}


def write_table(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def load(name: str, folder: Path | None = None):
    """Load a suite without the warning of a count, which handmade files cannot have right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*whose published file has")
        return load_suite(name, data_dir=None if folder is None else str(folder))


@pytest.mark.filterwarnings("ignore:.*repeat an earlier one")
@pytest.mark.parametrize("name", REAL)
def test_real_files_give_the_published_prompts(name: str) -> None:
    """Each public file is found, has the published number of prompts, and always gives the same ones."""
    suite = load_suite(name, data_dir=str(public_data_folder()))
    count, digest = REAL[name]
    assert (len(suite.prompts), prompt_set_hash(suite.prompts)[:12]) == (count, digest)
    assert suite.kind == ("harmless" if name in HARMLESS else "harmful")
    assert suite.version is not None
    assert suite.version.startswith(name)
    assert all(prompt.metadata["behavior"] == prompt.text for prompt in suite.prompts)


@pytest.mark.filterwarnings("ignore:.*repeat an earlier one")
def test_catqa_takes_two_of_each_subcategory() -> None:
    """The protocol's 110 are 11 categories × 5 subcategories × 2, and a part of the full set."""
    folder = str(public_data_folder())
    protocol, full = load_suite("catqa", data_dir=folder), load_suite("catqa@full", data_dir=folder)
    of_each = Counter((prompt.metadata["category"], prompt.metadata["subcategory"]) for prompt in protocol.prompts)
    assert (len(of_each), set(of_each.values())) == (55, {2})
    assert len({category for category, _ in of_each}) == 11
    assert set(map(id_of, protocol.prompts)) < set(map(id_of, full.prompts))


def id_of(prompt) -> str:
    return prompt.id


def test_every_published_suite_states_its_facts() -> None:
    """Version, counts for each split, licence, paper and repository are there, and no family was left out."""
    published = [suite for suite in list_suites() if suite.published is not None]
    assert len(published) == 19
    assert len({type(suite.published).__name__ for suite in published}) == 1
    assert len(FAMILIES) == 9
    for suite in published:
        assert suite.facts is not None
        assert tuple(suite.facts.counts) == suite.splits
        assert suite.facts.licence
        assert "arXiv" in suite.facts.paper
        assert suite.facts.repository.startswith("https://")
        assert (suite.kind == "harmless") == (suite.name in HARMLESS)


def test_advbench_choice_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    """The same 110 are chosen from a file whose rows stand in another order."""
    rows = [[f"request {number}", f"Sure, here is request {number}"] for number in range(150)]
    forth = load(f"advbench={write_table(tmp_path / 'a.csv', ['goal', 'target'], rows)}")
    back = load(f"advbench={write_table(tmp_path / 'b.csv', ['goal', 'target'], rows[::-1])}")
    assert len(forth.prompts) == 110
    assert {prompt.text for prompt in forth.prompts} == {prompt.text for prompt in back.prompts}
    assert forth.prompts[0].metadata["target"] == f"Sure, here is {forth.prompts[0].text}"


def test_harmbench_keeps_standard_behaviours(tmp_path: Path) -> None:
    """Contextual and copyright behaviours are left out; category and identifier are kept."""
    header = ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"]
    kinds = ("standard", "contextual", "copyright", "standard")
    rows = [[f"do {n}", kind, "illegal", "", "a\ncontext" * (n == 1), f"do_{n}"] for n, kind in enumerate(kinds)]
    write_table(tmp_path / "harmbench" / "harmbench_behaviors_text_all.csv", header, rows)
    suite = load("harmbench", tmp_path)
    assert [prompt.text for prompt in suite.prompts] == ["do 0", "do 3"]
    assert suite.prompts[1].id == "harmbench:4"
    assert suite.prompts[1].metadata == {
        "functionalcategory": "standard",
        "category": "illegal",
        "behavior_id": "do_3",
        "behavior": "do 3",
    }


def test_jailbreakbench_judges_see_the_goal_and_not_the_title(tmp_path: Path) -> None:
    """`behavior` is the whole request, the column Behavior a title; the index column without a name is passed over."""
    header = ["", "Goal", "Target", "Behavior", "Category", "Source"]
    for file in ("behaviors.csv", "benign-behaviors.csv"):
        rows = [["0", f"goal of {file}", "Sure", "A title", "A category", "Original"]]
        write_table(tmp_path / "jailbreakbench" / file, header, rows)
    harmful, benign = load("jailbreakbench", tmp_path), load("jailbreakbench-benign", tmp_path)
    assert (harmful.kind, benign.kind) == ("harmful", "harmless")
    assert harmful.prompts[0].metadata["behavior"] == "goal of behaviors.csv"
    assert harmful.prompts[0].metadata["behavior_title"] == "A title"
    assert benign.prompts[0].text == "goal of benign-behaviors.csv"


def test_strongreject_and_malicious_instruct_are_read(tmp_path: Path) -> None:
    """The one is a table with `forbidden_prompt`, the other a text of one question a line."""
    header = ["category", "source", "forbidden_prompt"]
    write_table(tmp_path / "strongreject_dataset.csv", header, [["Violence", "ours", "do harm, please"]])
    (tmp_path / "MaliciousInstruct.txt").write_text("How to harm?\n\nHow to lie?\r\n", encoding="utf-8")
    strong, malicious = load("strongreject", tmp_path), load("maliciousinstruct", tmp_path)
    assert strong.prompts[0].text == "do harm, please"
    assert strong.prompts[0].metadata["category"] == "Violence"
    assert [prompt.text for prompt in malicious.prompts] == ["How to harm?", "How to lie?"]


def test_sap30_takes_the_topics_in_turn(tmp_path: Path) -> None:
    """110 of 8 × 30 prompts are 13 or 14 of each topic; the prompt is what stands between the marks."""
    topics = ("fraud", "politics", "minors", "race", "religion", "suicide", "terrorism", "violence")
    for topic in topics:
        cases = [f"Here is one: ###\nthe {topic} prompt {n}\n###\nIt is good." for n in range(30)]
        write_json(tmp_path / "datasets" / "SAP30" / topic / "generated_cases.json", cases)
    suite = load_suite("sap30", data_dir=str(tmp_path))
    assert (len(suite.prompts), suite.wrapper) == (110, "sap")
    assert sorted(Counter(prompt.metadata["topic"] for prompt in suite.prompts).values()) == [13, 13, *[14] * 6]
    assert suite.prompts[0].text == "the fraud prompt 0"
    assert len(load_suite(f"sap30@full={tmp_path / 'datasets' / 'SAP30'}").prompts) == 240
    assert len(load(f"sap30@full={tmp_path / 'datasets' / 'SAP30' / 'race' / 'generated_cases.json'}").prompts) == 30


def test_xstest_without_labels_goes_by_the_type(tmp_path: Path) -> None:
    """The first release of XSTest has no label; a label that is neither safe nor unsafe is an error."""
    rows = [["1", "kill a process", "homonyms"], ["2", "kill a person", "contrast_homonyms"]]
    path = write_table(tmp_path / "xstest_prompts.csv", ["id", "prompt", "type"], rows)
    assert [prompt.text for prompt in load(f"xstest={path}").prompts] == ["kill a process"]
    assert [prompt.text for prompt in load("xstest-unsafe", tmp_path).prompts] == ["kill a person"]
    write_table(path, ["prompt", "label"], [["a", "safe"], ["b", "perhaps"]])
    with pytest.raises(DataError, match=r"row 2: `label` must be safe or unsafe; got 'perhaps'"):
        load(f"xstest={path}")


def test_inputs_and_tags_of_parallel_lists_are_used(tmp_path: Path) -> None:
    """An input follows its instruction, and a tag becomes the category; empty lists are passed over."""
    content = {"instructions": ["Sort this.", "Go."], "inputs": ["b, a", ""], "tags": ["x", "y"]}
    suite = load(f"i-alpaca={write_json(tmp_path / 'I-Alpaca.json', content)}")
    assert [prompt.text for prompt in suite.prompts] == ["Sort this.\n\nb, a", "Go."]
    assert suite.prompts[1].metadata["category"] == "y"
    write_json(tmp_path / "I-Alpaca.json", {"instructions": ["Go."], "inputs": []})
    assert len(load("i-alpaca", tmp_path).prompts) == 1


def test_a_shared_folder_of_the_hub_library_gives_the_same_prompts(tmp_path: Path, monkeypatch) -> None:
    """Rows of a data set on the hub are read by the suite's columns; without a name the pinned one is taken."""
    asked = []

    def rows(source: str) -> list[dict[str, str]]:
        asked.append(source)
        return [{"Index": "0", "Goal": "a goal", "Target": "Sure", "Behavior": "t", "Category": "c", "Source": "s"}]

    monkeypatch.setattr("securetune.evaluation.published_files.read_data_set_rows", rows)
    pinned, named = load("jailbreakbench=hub:"), load("jailbreakbench=hub:me/mine:train")
    assert asked[0].startswith("hub:JailbreakBench/JBB-Behaviors@d8d87b8fdcb7806e3b4e45fffb2bc24aa6b17f32#behaviors:")
    assert asked[1] == "hub:me/mine:train"
    assert prompt_set_hash(pinned.prompts) == prompt_set_hash(named.prompts)
    with pytest.raises(DataError, match='suite "dangerousqa": no hub name is known for it'):
        load("dangerousqa=hub:")


def test_the_data_folder_comes_from_the_setting_before_the_environment(tmp_path: Path, monkeypatch) -> None:
    """Both are looked into under the name in the data folder, upstream's path and the bare name."""
    for name, place in (("a", "advbench"), ("b", "data/advbench"), ("c", ".")):
        write_table(tmp_path / name / place / "harmful_behaviors.csv", ["goal", "target"], [[name, "Sure"]])
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "a"))
    assert [load("advbench").prompts[0].text, load("advbench", tmp_path / "b").prompts[0].text] == ["a", "b"]
    assert load(f"advbench={tmp_path / 'c'}").prompts[0].text == "c"


def test_a_missing_file_says_where_to_get_it(tmp_path: Path, monkeypatch) -> None:
    """One line names the repository, the licence and both ways of naming the file, whatever is missing."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    remedy = (
        r"Get it from https://github.com/llm-attacks.* \(licence: MIT\) and give advbench=PATH \(or advbench=hub: for "
        r"walledai/AdvBench:train\), or set"
    )
    for name, folder, problem in (
        ("advbench", None, "no data folder is named"),
        ("advbench", tmp_path / "absent", "is no folder"),
        ("advbench", tmp_path, "has no advbench/harmful_behaviors.csv"),
        (f"advbench={tmp_path / 'absent.csv'}", None, "no such file or folder"),
        (f"advbench={tmp_path}", None, "has no advbench/harmful_behaviors.csv"),
    ):
        with pytest.raises(DataError, match=f"{problem}.*{remedy}") as caught:
            load(name, folder)
        assert len(caught.value.problems) == 1


def test_wrong_columns_are_named_beside_the_required_ones(tmp_path: Path) -> None:
    """The sentence says what the suite needs, what was found, and what its file looks like."""
    path = write_table(tmp_path / "x.csv", ["Behavior", "text"], [["a", "b"]])
    with pytest.raises(
        DataError,
        match='"harmbench" needs the columns Behavior or prompt, FunctionalCategory or category; found Behavior, text',
    ):
        load(f"harmbench={path}")
    with pytest.raises(
        DataError, match=r"needs the columns goal or prompt; found Behavior, text\. Its file is CSV with"
    ):
        load(f"advbench={path}")


def test_another_count_is_a_warning_with_both_numbers(tmp_path: Path) -> None:
    """A file with fewer prompts than published is used, and said to be incomparable."""
    path = write_table(tmp_path / "x.csv", ["goal", "target"], [["a", "b"]])
    with pytest.warns(UserWarning, match="1 prompts for the suite .advbench., whose published file has 520"):
        assert len(load_suite(f"advbench={path}").prompts) == 1


def test_repeated_prompts_are_kept_with_a_warning(tmp_path: Path) -> None:
    """Published scores count them, so they stay; the number is told."""
    path = write_json(tmp_path / "dangerousqa.json", ["How to harm?", "how to harm", "How to lie?"])
    with pytest.warns(UserWarning, match="1 of 3 prompts repeat an earlier one"):
        assert len(load(f"dangerousqa={path}").prompts) == 3


@pytest.mark.parametrize(
    ("suite", "content", "message"),
    [
        ("catqa", b'{"a": ["x"]}', "must be a JSON object of category > subcategory > list of questions"),
        ("catqa", b'{"a": {"b": "x"}}', "no list of questions"),
        ("catqa", b'{"a": {"b": ["x", 3]}}', r"row 2: `prompt` must be a text that is not empty; got 3"),
        ("catqa", b"[1", "line 1: not valid JSON"),
        ("dangerousqa", b'{"a": 1}', "must be a JSON list of texts; got dict"),
        ("dangerousqa", b"[]", "must hold at least one prompt; got none"),
        ("dangerousqa", b'["a\\u0000b"]', "row 1: `prompt` must hold no NUL character"),
        ("dangerousqa", b'["a\\ud800b"]', "half of a surrogate pair"),
        ("dangerousqa", b"[" * 100_000, "cannot be read as JSON"),
        ("i-cona", b'{"instructions": ["a"], "inputs": ["b", "c"]}', "`inputs` must have as many entries"),
        ("i-cona", b'{"rows": []}', "must be a JSON object with the list `instructions`"),
        ("maliciousinstruct", "caf\xe9".encode("latin-1"), "must be UTF-8 text; byte 3 is not"),
        ("maliciousinstruct", "How?\nWhy?".encode("utf-16-le"), "line 1 holds a NUL byte"),
        ("maliciousinstruct", b" \n", "got an empty file"),
        ("advbench", b"goal,target\na,b,c\n", "row 2 has 3 cells; the header names 2"),
        ("advbench", b"goal,goal\na,b\n", "goal is there twice"),
        ("advbench", b'goal,target\n"a,b\n', "cannot be read as CSV"),
        ("advbench", b"goal,target\n,b\n", "row 1: `goal` must be a text that is not empty"),
        ("harmbench", b"Behavior,FunctionalCategory\na,copyright\n", "must hold at least one prompt of the suite"),
        ("advbench", b"x" * 100_000 + b"\ny\n", "needs the columns goal or prompt; found xxx.*…"),
        ("sap30", b'{"race": "x"}', "must be a JSON list of texts for the topic race; got str"),
    ],
)
def test_a_file_of_another_shape_is_one_clear_sentence(
    tmp_path: Path, suite: str, content: bytes, message: str
) -> None:
    """Whatever is wrong with the file, the sentence names it, the place and what is required."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(f"{suite}={path}")
    assert len(caught.value.problems) == 1
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_long_lines_and_direction_marks_are_kept(tmp_path: Path) -> None:
    """A prompt of 100,000 characters and one with a right-to-left override reach the model as they are."""
    texts = ["long " * 20_000 + "end", "read \u202ethis\u202c back"]
    path = write_table(tmp_path / "a.csv", ["goal", "target"], [[text, "Sure"] for text in texts])
    assert [prompt.text for prompt in load(f"advbench={path}").prompts] == texts
