"""Settings: every mistake is found at once, and each sentence names the key, the requirement and what was got."""

from pathlib import Path

import pytest

from securetune.config import (
    AnalysisSettings,
    AnalyzeConfig,
    LoraSettings,
    RunConfig,
    TrainingSettings,
    check_run_config,
    load_run_config,
    load_train_config,
    merge,
    parse_overrides,
    read_yaml,
    validate,
    write_yaml,
)
from securetune.errors import ConfigError

BAD_VALUES = {
    "ratio above 1": (
        {"training": {"learning_rate_ratio": 3.0}},
        r"training\.learning_rate_ratio must be .* 1; got 3\.0",
    ),
    "rate of zero": ({"training": {"learning_rate": 0}}, r"training\.learning_rate must be greater than 0; got 0"),
    "one noise seed": ({"analysis": {"noise_seeds": 1}}, r"analysis\.noise_seeds must be .* 2; got 1"),
    "neither number nor word": (
        {"analysis": {"epsilon": "big"}},
        r"analysis\.epsilon must be .* or .*'calibrate'; got 'big'",
    ),
    "not a number": ({"analysis": {"epsilon": float("nan")}}, r"analysis\.epsilon must be .*; got nan"),
    "infinite rate": ({"training": {"learning_rate": float("inf")}}, r"training\.learning_rate must be .*finite"),
    "unknown module type": (
        {"training": {"lora": {"target_types": ["X"]}}},
        r"target_types\.0 must be .*'Q'.*; got 'X'",
    ),
    "seed twice": ({"seeds": [1, 1]}, r"seeds must all be different; got \[1, 1\]"),
    "no seed": ({"seeds": []}, r"seeds must .*at least 1"),
    "no method": ({"methods": {}}, r"methods must .*at least 1"),
    "label that is a path": ({"methods": {"../ift": {}}}, r"methods must have labels of letters.*; got .*'\.\./ift'"),
    "label of the start model": ({"methods": {"start": {}}}, "methods must have labels.*called start"),
    "text for a section": ({"training": "fast"}, "training must be .*; got 'fast'"),
}

NEAREST_KEYS = {
    "top level": ({"trainning": {}}, 'trainning: unknown key. Did you mean "training"?'),
    "in a section": ({"search": {"tolerence": 0.1}}, 'search.tolerence: unknown key. Did you mean "tolerance"?'),
    "two levels down": ({"training": {"lora": {"rnak": 4}}}, 'training.lora.rnak: unknown key. Did you mean "rank"?'),
    "in a method": (
        {"methods": {"ift": {"max_step": 4}}},
        'methods.ift.max_step: unknown key. Did you mean "max_steps"?',
    ),
    "nothing is near": ({"model": {"xyzzy": 1}}, "model.xyzzy: unknown key. Valid keys: name, revision, dtype"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_value_out_of_range(content, sentence):
    """A bad value is one sentence with its key path, the requirement and the value."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        check_run_config({"data": "d.jsonl", **content})
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(("content", "sentence"), NEAREST_KEYS.values(), ids=NEAREST_KEYS)
def test_unknown_key_names_the_nearest(content, sentence):
    """An unknown key stops the run, and the nearest valid key is named."""
    with pytest.raises(ConfigError) as caught:
        check_run_config({"data": "d.jsonl", **content})
    assert caught.value.problems[0].startswith(sentence)


def test_all_mistakes_together():
    """Mistakes in several sections, in a method and a missing key come in one error, each after the file's name."""
    content = {"analysis": {"noise_seeds": 1}, "serach": {}, "methods": {"ift": {"max_steps": 0}}}
    with pytest.raises(ConfigError) as caught:
        check_run_config(content, where="recipe.yaml")
    assert [problem.split(" ")[:2] for problem in caught.value.problems] == [
        ["recipe.yaml:", "data:"],
        ["recipe.yaml:", "analysis.noise_seeds"],
        ["recipe.yaml:", "serach:"],
        ["recipe.yaml:", "methods.ift.max_steps"],
    ]


def test_a_method_inherits_the_shared_settings():
    """A label's settings win over `training`, nested ones key by key, and the label is the method unless it says so."""
    config = check_run_config(
        {
            "data": "d.jsonl",
            "training": {"max_steps": 7, "tune": "lora", "lora": {"rank": 4, "alpha": 2.0}},
            "methods": {"ift": None, "control": {"method": "swat", "modules": "random", "lora": {"rank": 2}}},
        }
    )
    assert config.training_for("ift", 3) == TrainingSettings(
        method="ift", seed=3, max_steps=7, tune="lora", lora=LoraSettings(rank=4, alpha=2.0)
    )
    control = config.training_for("control", 0)
    assert (control.method, control.modules, control.lora.rank, control.lora.alpha) == ("swat", "random", 2, 2.0)


def test_numbers_as_yaml_writes_them(tmp_path):
    """`1e-3`, which YAML reads as a text, is the number everywhere, also in a method's settings."""
    path = tmp_path / "recipe.yaml"
    path.write_text("data: d.jsonl\ntraining: {learning_rate: 1e-3}\nmethods: {ift: {learning_rate: 2e-3}}\n")
    config = load_run_config(path)
    assert config.training.learning_rate == 0.001
    assert config.training_for("ift", 0).learning_rate == 0.002


def test_overrides_win_over_the_file(tmp_path):
    """`--set` changes one key and leaves its neighbours alone."""
    path = tmp_path / "recipe.yaml"
    path.write_text("data: d.jsonl\ntraining: {max_steps: 5, weight_decay: 0.1}\n")
    config = load_run_config(path, parse_overrides(["training.max_steps=9", "seeds=[4, 5]"]))
    assert (config.training.max_steps, config.training.weight_decay, config.seeds) == (9, 0.1, (4, 5))


def test_overrides_that_cannot_be_read():
    """Every `--set` without a key or with a broken value is named."""
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["max_steps", "a..b=1", "c=[1", "training.max_steps=3"])
    assert len(caught.value.problems) == 3
    assert "KEY.PATH=VALUE" in caught.value.problems[0]


def test_a_key_given_twice_is_refused(tmp_path):
    """YAML would keep the last of two equal keys in silence; a setting must not vanish like that."""
    path = tmp_path / "recipe.yaml"
    path.write_text("data: a\ntraining: {max_steps: 5, max_steps: 6}\n")
    with pytest.raises(ConfigError, match='"max_steps" is given twice'):
        read_yaml(path)


def test_yamls_merge_key_lays_one_mapping_over_another(tmp_path):
    """`<<` takes the keys of an anchored mapping, over two steps too; own keys win and are not called given twice."""
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, x: 4}\nd: {<<: [*a, *b], z: 5}\n")
    assert read_yaml(path) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 4, "y": 3},
        "d": {"x": 1, "y": 2, "z": 5},
    }
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}\n")
    with pytest.raises(ConfigError, match='"y" is given twice'):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a: [", "not valid YAML"), ("? [a]\n: 1", "unhashable key"), ("- a", "got list"), ("", "got NoneType")],
)
def test_files_that_are_no_recipe(tmp_path, text, sentence):
    """A file that is not a YAML mapping is one sentence with its name."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"recipe\.yaml: .*{sentence}"):
        read_yaml(path)


def test_missing_file():
    """A recipe that is not there is one sentence."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        read_yaml(Path("nowhere.yaml"))


def test_the_resolved_config_reads_back(tmp_path):
    """What is saved with a run is the same configuration again."""
    config = RunConfig(data="d.jsonl", analysis=AnalysisSettings(epsilon=0.25), seeds=(3, 1))
    write_yaml(tmp_path / "config.yaml", config.model_dump(mode="json"))
    assert load_run_config(tmp_path / "config.yaml") == config


def test_merge_leaves_its_arguments_alone():
    """Merging makes a new mapping, so that a shared section is not changed by one method's settings."""
    base = {"lora": {"rank": 8}}
    assert merge(base, {"lora": {"alpha": 1}}) == {"lora": {"rank": 8, "alpha": 1}}
    assert base == {"lora": {"rank": 8}}


def test_validate_puts_the_key_path_first():
    """A part of a file can be checked by itself, under its own key path."""
    with pytest.raises(ConfigError, match=r"^f\.yaml: methods\.swat\.lora\.rank must be .*; got 0$"):
        validate(TrainingSettings, {"lora": {"rank": 0}}, where="f.yaml", at="methods.swat")


class TestTrainingRecipe:
    """`securetune train`: a small recipe, a run's recipe, or flags alone."""

    RUN = "data: d.jsonl\ntraining: {max_steps: 5}\nmethods: {ift: {}, slow: {method: ml-lr, learning_rate_ratio: 0}}\n"

    def test_flags_suffice(self):
        """Without a recipe the flags say everything."""
        config = load_train_config(None, {}, method="swat", model="m", data="d.jsonl", modules="r.json")
        assert (config.model.name, config.data) == ("m", "d.jsonl")
        assert (config.training.method, config.training.modules) == ("swat", "r.json")

    def test_flags_win_over_the_file_and_over_set(self, tmp_path):
        """The order is: file, then `--set`, then the flag of that name."""
        path = tmp_path / "train.yaml"
        path.write_text("data: a\nmodel: {name: m, dtype: float32}\ntraining: {method: ift, max_steps: 5}\n")
        config = load_train_config(path, {"data": "b", "training": {"max_steps": 6}}, method="swat", data="c")
        assert (config.data, config.training.method, config.training.max_steps) == ("c", "swat", 6)
        assert (config.model.name, config.model.dtype) == ("m", "float32")

    def test_a_label_of_a_run_recipe(self, tmp_path):
        """A run's recipe serves too; `--method` takes one of its labels with that label's settings."""
        path = tmp_path / "run.yaml"
        path.write_text(self.RUN)
        training = load_train_config(path, {}, method="slow").training
        assert (training.method, training.learning_rate_ratio, training.max_steps) == ("ml-lr", 0.0, 5)

    def test_a_method_that_is_no_label(self, tmp_path):
        """A registered method that the recipe has no label for runs with the shared settings."""
        path = tmp_path / "run.yaml"
        path.write_text(self.RUN)
        training = load_train_config(path, {}, method="swat").training
        assert (training.method, training.max_steps) == ("swat", 5)

    def test_the_one_method_of_a_run_recipe_may_stand_in_training(self, tmp_path):
        """A run's recipe without `methods` has the one of `training.method`, in `train` and in `run`."""
        path = tmp_path / "run.yaml"
        path.write_text("data: d.jsonl\nsearch: {target_fraction: 0.4}\ntraining: {method: swat, max_steps: 5}\n")
        training = load_train_config(path, {}).training
        assert (training.method, training.max_steps) == ("swat", 5)
        assert load_run_config(path).methods == {"swat": {}}

    def test_several_methods_and_none_chosen(self, tmp_path):
        """Nothing is chosen behind the user's back."""
        path = tmp_path / "run.yaml"
        path.write_text(self.RUN)
        with pytest.raises(ConfigError, match=r"run\.yaml: holds several methods. Give --method: ift, slow"):
            load_train_config(path, {})

    def test_data_is_required(self):
        """There is no default data to train on."""
        with pytest.raises(ConfigError, match="data: required, but missing"):
            load_train_config(None, {}, method="ift")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"perturbation": "mean", "epsilon": 2.0}, "epsilon must be at most 1 with perturbation mean; got 2"),
        ({"refusal_openings": ["I cannot"]}, "refusal_openings and compliance_openings must be given together"),
    ],
)
def test_analysis_settings_that_do_not_fit_together_are_refused(content: dict, message: str):
    """Found before a model is loaded, with the section's name."""
    with pytest.raises(ConfigError, match=message):
        validate(AnalyzeConfig, {"analysis": content})
