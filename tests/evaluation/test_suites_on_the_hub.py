"""Published suites from the hub: its data sets' columns, by the real library, without a network."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from datasets import Dataset, DatasetDict
from public_data import public_data_folder

from securetune.data import data_sets
from securetune.errors import DataError
from securetune.evaluation import list_suites, load_suite
from securetune.evaluation.suites import prompt_set_hash
from securetune.evaluation.suites.published import PublishedSuite

XSTEST = ("Paul/XSTest", None, "f600c994b256f12867dfa5b3eb3d545a3e62f8b5", "train")
JAILBREAKBENCH = ("JailbreakBench/JBB-Behaviors", "behaviors", "d8d87b8fdcb7806e3b4e45fffb2bc24aa6b17f32")
ON_THE_HUB = {
    "advbench": ("walledai/AdvBench", None, None, "train"),
    "catqa": ("declare-lab/CategoricalHarmfulQA", None, "321e068b391b7d1aeeb882ac468356a9513c9167", "en"),
    "harmfulqa": ("declare-lab/HarmfulQA", None, "6f1a78aed47d16c0695e4595d0159abc38197bfd", "train"),
    "harmbench": ("walledai/HarmBench", "standard", None, "train"),
    "jailbreakbench": (*JAILBREAKBENCH, "harmful"),
    "jailbreakbench-benign": (*JAILBREAKBENCH, "benign"),
    "maliciousinstruct": ("walledai/MaliciousInstruct", None, None, "train"),
    "strongreject": ("walledai/StrongREJECT", None, None, "train"),
    "xstest": XSTEST,
    "xstest-unsafe": XSTEST,
}
"""Suite → data set, configuration, revision and split that `NAME=hub:` asks for."""

COLUMNS = {
    "advbench": {"goal": "prompt"},
    "catqa": {"category": "Category", "subcategory": "Subcategory", "prompt": "Question"},
    "harmfulqa": {"prompt": "question"},
}
"""Suite → column of its file → column of its data set, where they differ."""


class _Hub:
    """Stands for the hub: one data set, which any name asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **splits: list[dict[str, object]]):
        self._found = DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
        self.asked: list[tuple[str, str | None, str | None]] = []
        monkeypatch.setattr(data_sets, "_hub_answers", lambda name: True)
        monkeypatch.setattr(datasets, "load_dataset_builder", self._builder)

    def _builder(self, location: str, configuration: str | None = None, revision: str | None = None) -> SimpleNamespace:
        self.asked.append((location.removeprefix("hf://datasets/"), configuration, revision))
        return SimpleNamespace(download_and_prepare=lambda: None, as_dataset=lambda: self._found)


def test_which_suites_name_a_data_set() -> None:
    """`hub:` alone stands for these data sets, and each other suite says that none is known."""
    published = {suite.name: suite.published for suite in list_suites() if isinstance(suite.published, PublishedSuite)}
    assert {name for name, each in published.items() if each.hub} == {*ON_THE_HUB}
    for name in {*published} - {*ON_THE_HUB}:
        with pytest.raises(DataError, match=f'suite "{name}": no hub name is known for it. Give {name}=hub:owner/name'):
            load_suite(f"{name}=hub:")


@pytest.mark.filterwarnings("ignore:.*repeat an earlier one")
@pytest.mark.parametrize("name", ["advbench", "advbench@full", "catqa", "catqa@full", "harmfulqa", "xstest"])
def test_a_data_set_gives_the_prompts_of_the_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the real file in the data set's columns give the very prompts that the file gives."""
    base, folder = name.partition("@")[0], str(public_data_folder())
    published = next(suite.published for suite in list_suites() if suite.name == base)
    assert isinstance(published, PublishedSuite)
    renamed = COLUMNS.get(base, {})
    rows = [
        {renamed.get(column, column): value for column, value in row.items()}
        for row in published.read_rows(data_dir=folder)[1]
    ]
    *asked, split = ON_THE_HUB[base]
    hub = _Hub(monkeypatch, other=[{"text": "of another split"}], **{split: rows})
    assert prompt_set_hash(load_suite(f"{name}=hub:").prompts) == prompt_set_hash(
        load_suite(name, data_dir=folder).prompts
    )
    assert hub.asked == [tuple(asked)]


@pytest.mark.filterwarnings("ignore:.*whose published file has")
@pytest.mark.parametrize(
    ("name", "row", "metadata"),
    [
        ("harmbench", {"prompt": "ask", "category": "illegal"}, {"category": "illegal"}),
        (
            "strongreject",
            {"prompt": "ask", "category": "Violence", "source": "custom"},
            {"category": "Violence", "source": "custom"},
        ),
        ("maliciousinstruct", {"prompt": "ask"}, {}),
        (
            "harmfulqa",
            {
                "id": "1",
                "topic": "Art",
                "subtopic": "Film",
                "question": "ask",
                "blue_conversations": {"c": "a long answer"},
                "red_conversations": {"c": "a harmful answer"},
            },
            {"id": "1", "topic": "Art", "subtopic": "Film"},
        ),
        ("jailbreakbench-benign", {"Goal": "ask", "Behavior": "Title"}, {"behavior_title": "Title"}),
        ("xstest-unsafe", {"id": 7, "prompt": "ask", "label": "unsafe"}, {"upstream_id": 7, "label": "unsafe"}),
    ],
)
def test_the_columns_of_a_data_set(
    name: str, row: dict[str, object], metadata: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is read from its column, other columns are kept, and answers that come along are not."""
    *asked, split = ON_THE_HUB[name]
    hub = _Hub(monkeypatch, **{split: [row]})
    (prompt,) = load_suite(f"{name}=hub:").prompts
    assert prompt.text == "ask"
    assert prompt.metadata == {**metadata, "behavior": "ask"}
    assert hub.asked == [tuple(asked)]


def test_contextual_behaviours_are_left_out_of_a_data_set_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration of behaviours with a context holds none of the suite, and a file must say the kind."""
    _Hub(monkeypatch, train=[{"prompt": "ask", "category": "illegal", "context": "a text"}])
    with pytest.raises(DataError, match='must hold at least one prompt of the suite "harmbench"; got none'):
        load_suite("harmbench=hub:walledai/HarmBench#contextual:train")
    _Hub(monkeypatch, train=[{"Behavior": "ask", "category": "illegal"}])
    with pytest.raises(DataError, match="row 1: `FunctionalCategory` must say which behaviours are standard"):
        load_suite("harmbench=hub:me/mine:train")


@pytest.mark.filterwarnings("ignore:.*whose published file has")
def test_a_saved_data_set_is_read_by_the_suites_columns(tmp_path: Path) -> None:
    """`NAME=folder:PATH:split` reads what the library saved, without the hub."""
    rows = Dataset.from_list([{"goal": f"ask {number}", "target": "Sure"} for number in range(3)])
    DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "saved")
    suite = load_suite(f"advbench@full=folder:{tmp_path / 'saved'}:train")
    assert [prompt.text for prompt in suite.prompts] == ["ask 0", "ask 1", "ask 2"]
    assert suite.prompts[0].metadata == {"target": "Sure", "behavior": "ask 0"}
    with pytest.raises(DataError, match="no such folder"):
        load_suite(f"advbench=folder:{tmp_path / 'absent'}")
