"""An experiment's file: every point of its sweeps is a label of one run, and mistakes are told together."""

import pytest

from securetune.config import check_experiment_config
from securetune.errors import ConfigError

FILE = {
    "data": "tiny-world",
    "sweep": {"max_steps": [10, 20]},
    "methods": {"ift": {}, "swat": {"sweep": {"max_steps": [5], "warmup_phase_steps": [4, 8]}, "learning_rate": 1e-3}},
    "evaluation": {"suites": ["tiny-world-harmful"], "task": "tiny-world-query"},
    "selection": {"suites": ["tiny-world-harmful@validation"], "task": "tiny-world-query@validation"},
}


def test_every_combination_is_a_point():
    """A sweep is tried at every combination of its values; a method's own keys win; one value needs no name."""
    found = check_experiment_config(FILE)
    labels = [point.label for point in found.points]
    assert labels == ["ift.max_steps-10", "ift.max_steps-20", "swat.warmup_phase_steps-4", "swat.warmup_phase_steps-8"]
    assert list(found.run.methods) == labels
    assert found.methods == ["ift", "swat"]
    settings = found.run.training_for("swat.warmup_phase_steps-8", 0)
    assert (settings.method, settings.max_steps, settings.warmup_phase_steps) == ("swat", 5, 8)
    assert settings.learning_rate == 1e-3
    assert found.points[-1].values == {"max_steps": 5, "warmup_phase_steps": 8}


def test_nested_settings_are_swept():
    """A dotted key reaches a section inside `training`, and leaves the rest of that section as it is."""
    found = check_experiment_config(
        {"data": "d", "training": {"lora": {"alpha": 7.0}}, "sweep": {"lora.rank": [2]}, "methods": {"ift": {}}}
    )
    lora = found.run.training_for("ift", 0).lora
    assert (lora.rank, lora.alpha) == (2, 7.0)


def test_settings_of_the_search_are_swept():
    """A key of the search gives each value a search of its own; the rest of the section stays as it is."""
    found = check_experiment_config(
        {
            **FILE,
            "search": {"seed": 7},
            "methods": {"ift": {}, "swat": {"sweep": {"max_steps": [5], "search.target_fraction": [0.25, 0.75]}}},
        }
    )
    small, large = "swat.target_fraction-0.25", "swat.target_fraction-0.75"
    assert [found.run.search_for(label).target_fraction for label in (small, large)] == [0.25, 0.75]
    assert found.run.search_for(small).seed == 7
    assert found.run.search_for("ift.max_steps-10") == found.run.search
    assert found.run.training_for(large, 0).max_steps == 5
    assert found.points[-1].values == {"max_steps": 5, "search.target_fraction": 0.75}


def test_every_method_is_tried_with_every_chain():
    """Chains multiply the methods; one that has a chain of its own is left alone."""
    found = check_experiment_config(
        {
            "data": "tiny-world",
            "methods": {"ift": {}, "half": {"method": "ift", "after": ["wise-ft"]}},
            "chains": {"mild": [{"wise-ft": {"strength": 0.1}}], "none": []},
        }
    )
    assert found.methods == ["ift", "ift-mild", "ift-none", "half"]
    assert found.run.training_for("ift-mild", 0).after[0].options == {"strength": 0.1}
    assert found.run.training_for("ift-none", 0).after == ()


def test_a_chain_may_have_parts():
    """Data, weights and generation are parts of a chain; they come behind those that all methods share."""
    found = check_experiment_config(
        {
            "data": "tiny-world",
            "training": {"before": [{"malicious-mix": {"count": 5}}]},
            "methods": {"ift": {}, "own": {"method": "ift", "before": []}},
            "chains": {
                "mixed": {"before": ["safety-mix"], "generation": ["ptst"]},
                "mild": ["wise-ft"],
            },
        }
    )
    assert found.methods == ["ift", "ift-mixed", "ift-mild", "own"]
    mixed, mild = (found.run.training_for(label, 0) for label in ("ift-mixed", "ift-mild"))
    assert [step.name for step in mixed.before] == ["malicious-mix", "safety-mix"]
    assert [step.name for step in mixed.generation] == ["ptst"]
    assert (mixed.after, mild.generation) == ((), ())
    assert [step.name for step in (*mild.before, *mild.after)] == ["malicious-mix", "wise-ft"]
    assert found.run.training_for("own", 0).before == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"methods": {"ift": {}, "swat": {"sweep": {"search.target_fraction": [0.5, 2.0]}}}},
            "target_fraction-2.search.target_fraction must be less than or equal to 1; got 2.0",
        ),
        ({"selection": None}, "selection: required where a method has several settings"),
        (
            {"selection": {"suites": ["tiny-world-harmful"], "task": "tiny-world-query@validation"}},
            'selection.suites: "tiny-world-harmful" is reported too',
        ),
        (
            {"selection": {"suites": ["tiny-world-harmful@validation"], "task": "tiny-world-query"}},
            "selection.task: must be given, and be another one",
        ),
        ({"matching": {"reference": "sft"}}, 'matching.reference: "sft" is none of the methods ift, swat'),
        ({"sweep": {"max_steps": []}}, "sweep max_steps must have at least one value, all different"),
        ({"sweep": {"max_steps": [5, 5]}}, "sweep max_steps must have at least one value, all different"),
        ({"sweep": {"seed": [1]}}, "sweep seed is no hyperparameter; give seeds"),
        ({"sweep": {"modules": ["../a"]}}, "'../a' cannot be part of a folder's name"),
        ({"sweep": {"max_stepz": [1, 2]}}, 'max_stepz: unknown key. Did you mean "max_steps"?'),
        ({"sweep": {"max_steps": [0]}}, "max_steps must be greater than or equal to 1; got 0"),
        ({"methods": {"ift": {"sweep": {"max_steps": 3}}}}, "methods.ift.sweep.max_steps"),
        ({"matching": {"task_accuracy": 1.5}}, "matching.task_accuracy must be less than or equal to 1"),
        ({"methods": {"ift": 3}}, "methods.ift must be a mapping of settings; got 3"),
        (
            {"sweep": {"learning_rate": [0.12345678, 0.12345679]}},
            'two settings would be called "ift.learning_rate-0.123457"',
        ),
        (
            {"chains": {"mild": ["wise-ft"]}, "methods": {"ift": {}, "ift-mild": {"method": "ift"}}},
            'two settings would be called "ift-mild"',
        ),
        ({"selection": {"task": "tiny-world-query@validation"}}, "selection.suites: required"),
        ({"swep": {}}, 'swep: unknown key. Did you mean "sweep"?'),
        ({"chains": {"mild": {"befor": []}}}, 'chains.mild.befor: unknown key. Did you mean "before"?'),
    ],
)
def test_mistakes_are_told(changes, sentence):
    """What cannot be an experiment is refused with the key, what is required and what was got."""
    with pytest.raises(ConfigError) as caught:
        check_experiment_config({**FILE, **changes})
    assert sentence in "\n".join(caught.value.problems)
