"""The safety tasks in lm-eval's format, without lm-eval: what the YAML files name exists and works."""

import csv
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from public_data import public_data_folder

from securetune.errors import DataError
from securetune.evaluation.lm_eval_tasks import FOLDER, safety_tasks
from securetune.evaluation.suites import registered_name

TASKS = {
    "securetune_advbench": (110, "harmful"),
    "securetune_advbench_full": (520, "harmful"),
    "securetune_xstest": (250, "harmless"),
    "securetune_xstest_unsafe": (200, "harmful"),
    "securetune_jailbreakbench": (100, "harmful"),
    "securetune_jailbreakbench_benign": (None, "harmless"),
}
"""Task → number of prompts (None: its file is not among the public data of the tests), and kind."""

METRICS = {"harmful": {"attack_success_rate", "refusal_rate"}, "harmless": {"over_refusal_rate"}}


class _Loader(yaml.SafeLoader):
    """Reads YAML as lm-eval does: `!function module.name` is a function of the file beside it."""


def _function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Callable[..., Any]:
    module, _, name = str(node.value).rpartition(".")
    assert module == "safety_tasks"
    return getattr(safety_tasks, name)


_Loader.add_constructor("!function", _function)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file with what it includes, whose keys its own ones replace."""
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    included = content.pop("include", None)
    return content if included is None else {**read_yaml(path.parent / included), **content}


FILES = [read_yaml(path) for path in sorted(FOLDER.glob("*.yaml"))]
CONFIGS = {content["task"]: content for content in FILES if isinstance(content.get("task"), str)}


def test_every_task_has_its_file() -> None:
    """Nine files: six tasks, their two templates, and a group of tasks that exist."""
    assert set(CONFIGS) == set(TASKS)
    assert len(FILES) == 9
    (group,) = (content for content in FILES if "group" in content)
    assert group["group"] == "securetune_safety"
    assert set(group["task"]) < set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_complete(name: str) -> None:
    """Prompt, data and metrics are named; an answer's marks are exactly the metrics, and the suite is registered."""
    config = CONFIGS[name]
    kind = TASKS[name][1]
    doc = {"id": "1", "prompt": "How do I bake bread?", "behavior": "How do I bake bread?"}
    for answer in ("I’m sorry, but I can’t help with that.", "Sure, take flour.", ""):
        assert set(config["process_results"](doc, [answer])) == METRICS[kind]
    assert {metric["metric"] for metric in config["metric_list"]} == METRICS[kind]
    assert all(metric["aggregation"] == "mean" for metric in config["metric_list"])
    assert (config["doc_to_text"], config["test_split"], config["output_type"]) == (
        "{{prompt}}",
        "test",
        "generate_until",
    )
    assert config["generation_kwargs"]["do_sample"] is False
    assert registered_name(config["dataset_kwargs"]["suite"])


def test_refusals_are_told_by_the_default_keyword_judge() -> None:
    """A refusal of a harmful prompt is no success, of a harmless one an over-refusal; typographic apostrophes count."""
    doc = {"id": "1", "prompt": "p", "behavior": "p"}
    refusal, answer = ["I’m sorry, but I can’t help with that."], ["Sure, take flour."]
    assert safety_tasks.mark_harmful(doc, refusal) == {"attack_success_rate": 0.0, "refusal_rate": 1.0}
    assert safety_tasks.mark_harmful(doc, answer) == {"attack_success_rate": 1.0, "refusal_rate": 0.0}
    assert safety_tasks.mark_harmless(doc, refusal) == {"over_refusal_rate": 1.0}
    assert safety_tasks.mark_harmless(doc, answer) == {"over_refusal_rate": 0.0}


@pytest.mark.parametrize("name", [name for name, (count, _) in TASKS.items() if count])
def test_a_task_reads_the_real_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task has the published number of prompts, from the data folder of the environment or of the metadata."""
    folder = str(public_data_folder())
    monkeypatch.delenv("SECURETUNE_DATA", raising=False)
    config = CONFIGS[name]
    data = config["custom_dataset"](**config["metadata"], **config["dataset_kwargs"], data_dir=folder)
    assert set(data["test"].column_names) == {"id", "prompt", "behavior"}
    assert len(data["test"]) == TASKS[name][0]
    assert all(row["prompt"] == row["behavior"] for row in data["test"])


@pytest.mark.filterwarnings("ignore:.*whose published file has")
def test_where_a_tasks_prompts_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file named in the metadata wins; without one and without a data folder, the YAML's data set is asked for."""
    monkeypatch.delenv("SECURETUNE_DATA", raising=False)
    path = tmp_path / "ours.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["Goal"], ["do it"]])
    asked: list[str] = []

    def rows(source: str) -> list[dict[str, Any]]:
        asked.append(source)
        return [{"Goal": "from the hub"}]

    monkeypatch.setattr("securetune.evaluation.published_files.read_data_set_rows", rows)
    kwargs = CONFIGS["securetune_jailbreakbench"]["dataset_kwargs"]
    assert safety_tasks.read_suite(**kwargs, jailbreakbench=str(path))["test"][0]["prompt"] == "do it"
    assert safety_tasks.read_suite(**kwargs)["test"][0]["prompt"] == "from the hub"
    assert asked[0].startswith("hub:JailbreakBench/JBB-Behaviors@")
    kwargs = CONFIGS["securetune_xstest"]["dataset_kwargs"]
    with pytest.raises(DataError, match="needs the columns prompt, label or type; found Goal"):
        safety_tasks.read_suite(**kwargs)
    assert asked[1].startswith("hub:Paul/XSTest@")
    with pytest.raises(DataError, match='suite "advbench": its file is needed, but no data folder is named'):
        safety_tasks.read_suite("advbench")


def test_the_folder_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m securetune.evaluation.lm_eval_tasks` prints what `--include_path` takes."""
    runpy.run_module("securetune.evaluation.lm_eval_tasks", run_name="__main__")
    assert Path(capsys.readouterr().out.strip()) == FOLDER
