"""Presets: a name that stands for a method and the defenses around it."""

import pytest

from securetune import SecureSFTConfig
from securetune.config import check_experiment_config, check_run_config, load_train_config
from securetune.config.presets import list_presets, with_preset
from securetune.defenses import find_defense
from securetune.errors import ConfigError
from securetune.pipeline.checks import check_run
from securetune.pipeline.folder import resolved_config

RUN = {"data": "tiny-world", "methods": {"ift": {}, "protected-mix": {}}}


def names(steps):
    return [step.name for step in steps]


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_a_preset_is_a_valid_method_of_a_run(preset):
    """Everything that it names is registered and fits together, and it is no method's name itself."""
    config = check_run_config({"data": "tiny-world", "methods": {"ift": {}, preset.name: {}}})
    check_run(config, None)
    assert find_defense(config.training_for(preset.name, 0).method).name == preset.training["method"]
    with pytest.raises(ConfigError, match="unknown"):
        find_defense(preset.name)


def test_a_preset_is_filled_in_and_its_own_settings_win():
    """The resolved settings hold the method and its defenses; what is said beside the name wins over them."""
    own = {
        "protected-mix": {"learning_rate": 1e-4, "method_options": {"energy": 0.8, "seed": 3}},
        "bare": {"method": "protected-mix"},
    }
    config = check_run_config({**RUN, "methods": {**own, "plain": {"method": "protected-mix", "before": []}}})
    settings = config.training_for("protected-mix", 3)
    assert (settings.method, settings.learning_rate, settings.seed) == ("protected-subspace", 1e-4, 3)
    assert settings.method_options == {**list_presets()[0].training["method_options"], "energy": 0.8, "seed": 3}
    assert config.training_for("bare", 0).method_options == list_presets()[0].training["method_options"]
    assert names(settings.before) == names(config.training_for("bare", 0).before) == ["safety-mix"]
    assert names(config.training_for("plain", 0).before) == []


def test_what_all_methods_face_stays_before_the_presets_defenses():
    """An attack on the data of all methods is not replaced by the preset's refusals, nor are these mixed in twice."""
    attacked = check_run_config({**RUN, "training": {"before": [{"malicious-mix": {"count": 5}}]}})
    assert names(attacked.training_for("ift", 0).before) == ["malicious-mix"]
    assert names(attacked.training_for("protected-mix", 0).before) == ["malicious-mix", "safety-mix"]
    mixed = check_run_config({**RUN, "training": {"before": [{"safety-mix": {"count": 5}}]}})
    (step,) = mixed.training_for("protected-mix", 0).before
    assert step.options == {"count": 5}


def test_a_resolved_run_can_be_read_again():
    """The file that a run keeps of itself holds no preset's name as method, and says the same when it is read."""
    first = check_run_config(RUN)
    again = check_run_config(resolved_config(first))
    assert again.training_for("protected-mix", 0) == first.training_for("protected-mix", 0)


def test_the_only_method_of_a_run_may_be_a_preset():
    """`training.method` alone may name it; its defenses are there once."""
    config = check_run_config({"data": "tiny-world", "training": {"method": "protected-mix"}})
    assert names(config.training_for("protected-mix", 0).before) == ["safety-mix"]


def test_a_preset_shared_by_all_methods_is_refused():
    """Its defenses would change plain fine-tuning too."""
    with pytest.raises(ConfigError, match=r"training\.method: \"protected-mix\" is a preset, which belongs in methods"):
        check_run_config({**RUN, "training": {"method": "protected-mix"}})
    with pytest.raises(ConfigError, match=r"training\.method must be a valid string"):
        check_run_config({**RUN, "training": {"method": ["protected-mix"]}})


def test_one_training_by_its_name(tmp_path):
    """`train --method` takes it, alone, beside a recipe's methods, and as a label of them; flags win."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: tiny-world\ntraining: {max_steps: 7}\nmethods: {ift: {}, swat: {}}\n")
    for path, overrides in [(None, {}), (recipe, {}), (recipe, {"methods": {"protected-mix": {}}})]:
        config = load_train_config(path, overrides, method="protected-mix", data="tiny-world")
        assert config.training.method == "protected-subspace"
        assert names(config.training.before) == ["safety-mix"]
        assert config.training.max_steps == (7 if path else None)
    with pytest.raises(ConfigError, match=r"training must be"):
        load_train_config(None, {"training": 5}, method="protected-mix", data="tiny-world")


def test_an_experiments_chains_leave_it_alone():
    """A preset has defenses of its own, as a method with `before` has; sweeps are laid over it."""
    content = {
        "data": "tiny-world",
        "methods": {"ift": {}, "protected-mix": {"sweep": {"learning_rate": [1e-4, 1e-3]}}},
        "chains": {"resta": [{"resta": {"unaligned": "tiny-world-base"}}]},
        "evaluation": {"suites": ["tiny-world-harmful"], "task": "tiny-world-query"},
        "selection": {"suites": ["tiny-world-harmful@validation"], "task": "tiny-world-query@validation"},
    }
    config = check_experiment_config(content)
    labels = ["ift", "ift-resta", "protected-mix.learning_rate-0.0001", "protected-mix.learning_rate-0.001"]
    assert [point.label for point in config.points] == labels
    settings = config.run.training_for(labels[-1], 0)
    assert (settings.method, settings.learning_rate, names(settings.before)) == (
        "protected-subspace",
        1e-3,
        ["safety-mix"],
    )


def test_a_trainer_says_what_to_do_instead(tmp_path):
    """A trainer cannot mix data; the message names the command, the method and the function that do."""
    with pytest.raises(ConfigError, match=r'"protected-mix" is a preset.*method="protected-subspace".*prepare_data'):
        SecureSFTConfig(str(tmp_path), method="protected-mix", use_cpu=True, bf16=False)


def test_other_content_is_left_as_it_is():
    """Without a preset's name nothing is changed, whatever the method is."""
    for own in ({}, {"method": None}, {"method": ["swat"]}, {"method": "swat", "before": ["x"]}):
        assert with_preset(own) == own
