"""An experiment on several data sets: each is an experiment of its own, and mistakes are told together."""

import pytest

from securetune.config import ONLY, check_experiment_configs, load_experiment_configs, write_yaml
from securetune.errors import ConfigError

EVALUATION = {"suites": ["tiny-world-harmful"], "task": "tiny-world-query"}
FILE = {
    "training": {"max_length": 64, "learning_rate": 1e-3},
    "methods": {"ift": {}, "swat": {}},
    "evaluation": EVALUATION,
    "data_sets": {
        "queries": {"data": "tiny-world"},
        "sums": {"data": "sums.jsonl", "training": {"max_length": 32}, "evaluation": {"task": "sums_test.jsonl"}},
    },
}


def test_each_data_set_is_an_experiment(tmp_path):
    """What a data set says is laid over the file's sections; the rest is the same for all."""
    write_yaml(tmp_path / "file.yaml", FILE)
    found = load_experiment_configs(tmp_path / "file.yaml", {"seeds": [3, 4]})
    assert list(found) == ["queries", "sums"]
    queries, sums = found["queries"].run, found["sums"].run
    assert (queries.data, queries.training.max_length) == ("tiny-world", 64)
    assert queries.evaluation.task == "tiny-world-query"
    assert (sums.data, sums.training.max_length, sums.evaluation.task) == ("sums.jsonl", 32, "sums_test.jsonl")
    assert sums.evaluation.suites == queries.evaluation.suites == ("tiny-world-harmful",)
    assert sums.training.learning_rate == 1e-3
    assert sums.seeds == queries.seeds == (3, 4)


def test_without_data_sets_there_is_one():
    """A file without the section is one experiment, which has no name."""
    content = {"data": "tiny-world", "methods": {"ift": {}}, "evaluation": EVALUATION}
    assert list(check_experiment_configs(content)) == [ONLY]


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"data": "tiny-world"}, ["f: data: each data set of data_sets has its own. Leave it out."]),
        ({"data_sets": {}}, ["f: data_sets must have at least one name of letters"]),
        ({"data_sets": {"a/b": {"data": "d"}}}, ["f: data_sets must have at least one name of letters"]),
        (
            {"data_sets": {"one": {}, "two": {"data": "d", "taks": 1}}},
            ["f: data_sets.one.data: required, but missing", "f: data_sets.two.taks: unknown key."],
        ),
        ({"seeds": [1, 1]}, ["f: seeds must all be different"]),
        (
            {"seeds": [1, 1], "data_sets": {**FILE["data_sets"], "bad": {"data": "d", "training": {"max_length": 0}}}},
            ["f: seeds must all be different", "f: data_sets.bad: training.max_length must be greater than"],
        ),
    ],
)
def test_mistakes_are_told_once(changes, problems):
    """A mistake in the shared sections is told once; one of a data set with its name; all of them together."""
    with pytest.raises(ConfigError) as caught:
        check_experiment_configs({**FILE, **changes}, "f")
    assert len(caught.value.problems) == len(problems)
    for told, expected in zip(caught.value.problems, problems, strict=True):
        assert told.startswith(expected)
