"""Prompts from data sets, read by the real library, without a network."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from datasets import Dataset, DatasetDict

from securetune.config import ProbeSettings, check_run_config
from securetune.data import data_sets
from securetune.data.conversations import read_training_data
from securetune.data.data_sets import names_data_set, read_data_set, read_data_set_rows
from securetune.data.prompts import load_probes
from securetune.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(word: str, count: int = 12) -> Dataset:
    return Dataset.from_list([{"goal": f"{word} number {n}", "kind": word, "n": n} for n in range(count)])


def saved(sets: Dataset | DatasetDict, folder: Path) -> str:
    sets.save_to_disk(folder)
    return f"folder:{folder}"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A saved data set with two splits and no usual column."""
    return saved(DatasetDict(train=rows("burn"), test=rows("steal", 5)), tmp_path / "set")


class FakeHub:
    """Stands for the hub: real data sets by name, through the call that the program makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **sets: DatasetDict | Exception):
        self.sets = sets
        self.asked: list[tuple] = []
        monkeypatch.setattr(data_sets, "_hub_answers", lambda name: True)
        monkeypatch.setattr(datasets, "load_dataset_builder", self.builder)

    def builder(self, location: str, configuration: str | None = None, revision: str | None = None):
        self.asked.append((location, configuration, revision))
        found = self.sets[location.rpartition("/")[2]]
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(download_and_prepare=lambda: None, as_dataset=lambda: found)


def test_a_saved_data_set_is_read(folder: str):
    """A split and a column of it are its prompts, with names that say where each is from."""
    prompts = read_data_set(f"{folder}:test:goal")
    assert [prompt.text for prompt in prompts] == [f"steal number {n}" for n in range(5)]
    assert prompts[0].id.endswith("set:test:1")


def test_a_set_of_one_split_and_a_usual_column_needs_no_more_than_its_name(tmp_path: Path):
    """`prompt` and `messages` are found; a column of conversations gives whole conversations."""
    one = Dataset.from_list([{"prompt": "hello", "n": 1}])
    assert read_data_set(saved(one, tmp_path / "one"))[0].text == "hello"
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    talk = saved(DatasetDict(test=Dataset.from_list([{"n": 1, "messages": turns}])), tmp_path / "two")
    (prompt,) = read_data_set(talk)
    assert [dict(message) for message in prompt.messages] == turns


def test_a_folder_of_files_is_read(tmp_path: Path):
    """JSON lines, CSV and the like become a data set by the library's own rules."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.csv").write_text("goal,n\nhow to bake,1\nhow to fry,2\n")
    assert [prompt.text for prompt in read_data_set(f"folder:{tmp_path / 'files'}::goal")] == [
        "how to bake",
        "how to fry",
    ]


def test_a_folder_may_be_called_anything(tmp_path: Path):
    """The signs that part a name mean nothing in a folder that exists."""
    odd = tmp_path / "a:b#c@d"
    Dataset.from_list([{"prompt": "hello"}]).save_to_disk(odd)
    assert read_data_set(f"folder:{odd}")[0].text == "hello"


def test_a_hub_set_is_asked_for_by_all_that_was_named(monkeypatch: pytest.MonkeyPatch):
    """Revision, configuration, split and column each go where they belong."""
    hub = FakeHub(monkeypatch, things=DatasetDict(train=rows("burn"), test=rows("steal")))
    prompts = read_data_set("hub:some-one/things@v1.2#small:train:goal")
    assert hub.asked == [("hf://datasets/some-one/things", "small", "v1.2")]
    assert (prompts[0].id, prompts[0].text, len(prompts)) == ("some-one/things:train:1", "burn number 0", 12)


def test_probes_come_from_data_sets_too(monkeypatch: pytest.MonkeyPatch, folder: str):
    """A hub set and a folder serve as the two classes, divided like files."""
    FakeHub(monkeypatch, things=DatasetDict(train=rows("wash", 20)))
    settings = ProbeSettings(harmful=f"{folder}:train:goal", harmless="hub:o/things::goal", fit_share=0.5)
    probes = load_probes(settings, "some/model")
    assert [len(part) for part in probes[:4]] == [6, 10, 6, 10]


BAD_NAMES = {
    "hub:advbench": 'must be named owner/name; got "advbench"',
    "hub:a/b/c": 'must be named owner/name; got "a/b/c"',
    "hub:": r"must be named as hub:owner/name\[@revision\]",
    "folder:": r"must be named as hub:owner/name",
    "folder:nowhere:train": "no such folder",
}


@pytest.mark.parametrize(("source", "sentence"), BAD_NAMES.items(), ids=BAD_NAMES)
def test_a_name_of_another_form_is_refused(source: str, sentence: str):
    """The forms are shown; nothing is looked for."""
    assert names_data_set(source)
    with pytest.raises(DataError, match=f"^{re.escape(source)}: .*{sentence}"):
        read_data_set(source)


BAD_CHOICES = {
    "": r"has several splits: train, test\. Name one, such as folder:.*set:train$",
    ":dev:goal": r'has no split "dev"; it has train, test$',
    ":train": r'has no column "prompt" or "messages"; it has goal, kind, n\. Name one, such as .*set:train:goal$',
    ":train:gaol": r'has no column "gaol"; it has goal, kind, n\. Did you mean "goal"\?$',
    ":train:n": r'row 1: "prompt" must be a text that is not empty; got 0$',
}


@pytest.mark.parametrize(("choice", "sentence"), BAD_CHOICES.items(), ids=BAD_CHOICES)
def test_what_a_set_has_is_listed(folder: str, choice: str, sentence: str):
    """A split or a column that is missing, or must be chosen, is a sentence with those that there are."""
    with pytest.raises(DataError) as caught:
        read_data_set(folder + choice)
    assert re.search(sentence, caught.value.problems[0]), caught.value.problems


def test_a_split_of_a_set_without_splits_is_refused(tmp_path: Path):
    """A single saved set has no split to choose."""
    with pytest.raises(DataError, match='has no split "train"; it has none'):
        read_data_set(f"{saved(rows('burn'), tmp_path / 'one')}:train:goal")


def test_configurations_are_listed(tmp_path: Path):
    """Of several one must be named; one that does not exist is named with those that do."""
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: big\n  data_files: b.csv\n- config_name: small\n  data_files: s.csv\n---\n"
    )
    for name in ("b.csv", "s.csv"):
        (tmp_path / name).write_text("prompt\nhello\n")
    with pytest.raises(DataError, match=r"has several configurations: big, small\. Name one, such as folder:.*#big$"):
        read_data_set(f"folder:{tmp_path}:train")
    with pytest.raises(DataError, match=r'has no configuration "huge"; it has big, small$'):
        read_data_set(f"folder:{tmp_path}#huge")
    assert len(read_data_set(f"folder:{tmp_path}#small")) == 1


def test_no_program_of_a_data_set_is_run(tmp_path: Path):
    """A folder with a loading script is refused, and the script does not run."""
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="by a program of its own only, and no such program is run"):
        read_data_set(f"folder:{folder}")
    assert not (tmp_path / "ran").exists()


def test_broken_and_empty_folders_are_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """The cause is told, and the library prints nothing of its own."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"cannot be read \(.*doesn't contain any data files\)"):
        read_data_set(f"folder:{tmp_path / 'empty'}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"prompt": "a"}\nnot json\n')
    with pytest.raises(DataError, match=r"cannot be read \(JSON parse error"):
        read_data_set(f"folder:{tmp_path / 'broken'}")
    assert capfd.readouterr().err == ""


def test_a_split_without_rows_is_refused(monkeypatch: pytest.MonkeyPatch):
    """No prompts are not a set of prompts."""
    FakeHub(monkeypatch, things=DatasetDict(train=Dataset.from_dict({"prompt": []})))
    with pytest.raises(DataError, match=r"^hub:o/things: must hold at least one prompt; got no rows"):
        read_data_set("hub:o/things")


def test_a_set_that_the_hub_does_not_have_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    """Gated and missing sets look alike from outside."""
    missing = datasets.exceptions.DatasetNotFoundError(
        "Dataset 'o/gone' doesn't exist on the Hub or cannot be accessed."
    )
    FakeHub(monkeypatch, gone=missing)
    with pytest.raises(DataError, match=r"^hub:o/gone@v2: the hub has no data set o/gone of revision v2, or gives no"):
        read_data_set("hub:o/gone@v2")


def test_without_a_network_the_hub_is_not_tried_again_and_again(monkeypatch: pytest.MonkeyPatch):
    """A set that was never downloaded is a sentence at once, from the library's own cache."""
    monkeypatch.setattr(data_sets, "_hub_answers", lambda name: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match="not among the downloaded data sets, and the hub cannot be reached"):
        read_data_set("hub:nobody/nothing")
    assert datasets.config.HF_HUB_OFFLINE is False


def test_without_a_network_a_set_is_taken_as_it_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A warning says so; a revision that was asked for is not passed over in silence."""
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "train.jsonl").write_text('{"goal": "burn it"}\n')
    assert read_data_set(f"folder:{tmp_path / 'things'}::goal")
    (tmp_path / "cache" / "things").rename(tmp_path / "cache" / "some-one___things")  # as a download from the hub lies
    monkeypatch.setattr(data_sets, "_hub_answers", lambda name: False)
    with pytest.warns(UserWarning, match="^hub:some-one/things::goal: the hub does not give it now; taken is what"):
        assert [prompt.text for prompt in read_data_set("hub:some-one/things::goal")] == ["burn it"]
    with pytest.raises(DataError, match=r"no revision v9, and what was downloaded earlier may be .* Leave out @v9"):
        read_data_set("hub:some-one/things@v9::goal")


def test_mistakes_in_both_sources_are_reported_together(tmp_path: Path, folder: str):
    """A data set and a file that cannot be used are two sentences."""
    with pytest.raises(DataError) as caught:
        load_probes(ProbeSettings(harmful=folder, harmless=str(tmp_path / "none.txt")), "m")
    first, second = caught.value.problems
    assert "several splits" in first
    assert "no such file" in second


def test_the_library_is_imported_only_for_a_data_set():
    """Reading files, and showing help, does not pay for it."""
    import subprocess

    program = "import sys; import securetune.data.prompts; print('datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("rows_of", "numbers"),
    [("train[:2]", [0, 1]), ("train[10:]", [10, 11]), ("train[3:5]", [3, 4]), ("test[:5]", [0, 1, 2, 3, 4])],
)
def test_some_rows_of_a_split(folder: str, rows_of: str, numbers: list[int]):
    """A split may end with the rows that are taken; whole rows and prompts alike."""
    assert [row["n"] for row in read_data_set_rows(f"{folder}:{rows_of}")] == numbers
    assert len(read_data_set(f"{folder}:{rows_of}:goal")) == len(numbers)


@pytest.mark.parametrize(
    ("rows_of", "sentence"),
    [
        ("train[:13]", "the split has 12 rows; not all that are asked for are there"),
        ("train[12:]", "the split has 12 rows; not all that are asked for are there"),
        ("train[5]", r'rows of a split must be named as in train\[:1000\] or train\[1000:\]; got "train\[5\]"'),
        ("train[-3:]", "rows of a split must be named as in"),
    ],
)
def test_rows_that_are_not_there(folder: str, rows_of: str, sentence: str):
    """Fewer rows than were asked for would be another data set: it is refused."""
    with pytest.raises(DataError, match=sentence):
        read_data_set_rows(f"{folder}:{rows_of}")


def test_several_sources_are_one_data_set(folder: str, tmp_path: Path):
    """They are read one after the other, their shapes counted together, and all that are wrong are told."""
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "how", "completion": "so"}\n')
    pairs = Dataset.from_list([{"instruction": f"do {n}", "response": "done"} for n in range(9)])
    found = read_training_data(f"{own} + {saved(pairs, tmp_path / 'pairs')}:[2:5] + {own}")
    assert [row["messages"][0]["content"] for row in found.conversations] == ["how", "do 2", "do 3", "do 4", "how"]
    assert found.shapes == {"prompt/completion": 2, "instruction/response": 3}
    with pytest.raises(DataError) as caught:
        read_training_data(f"gone.jsonl + {own} + {folder}:[:3]")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["gone.jsonl", "folder"]


def test_a_list_of_sources_in_a_file_is_the_same(tmp_path: Path):
    """In YAML several sources are a list; whatever is no list of texts is refused with its key."""
    config = check_run_config({"data": ["own.jsonl", "hub:owner/name:train[:10]"]})
    assert config.data == "own.jsonl + hub:owner/name:train[:10]"
    for wrong in ([], [3], {"a": "b"}):
        with pytest.raises(ConfigError, match="data must be a valid string"):
            check_run_config({"data": wrong})
