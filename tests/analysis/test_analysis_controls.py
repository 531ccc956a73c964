import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from securetune.analysis.controls import (
    _random_labels,
    _retrained,
    _words_alone,
    analysis_controls,
    retrained_accuracies,
)
from securetune.artifacts import AnalysisControl
from securetune.data.prompts import ProbeSet, Prompt, make_probe_set
from securetune.features import (
    GaussianPerturbation,
    SecurityProbe,
    UpdatePerturbation,
    fit_classifier,
    fit_probe,
    last_token_states,
    perturbed,
)
from securetune.models import ChatModel, map_modules


@pytest.fixture
def small_probes(tiny_probes: ProbeSet) -> ProbeSet:
    """Half of the prompts, classes of different sizes."""
    harmful, harmless = slice(0, None, 2), slice(1, None, 3)
    parts = (tiny_probes[0][harmful], tiny_probes[1][harmless], tiny_probes[2][harmful], tiny_probes[3][harmless])
    return make_probe_set(*parts)


def _retrained_by_hand(chat: ChatModel, probes: ProbeSet) -> float:
    """Fit scikit-learn's classifier to the features as they are now, and score it on the scored prompts."""
    parts = [last_token_states(chat.model, chat.tokenizer, part).double().numpy() for part in probes[:4]]
    regression = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000))
    regression.fit(np.concatenate(parts[:2]), [1] * len(parts[0]) + [0] * len(parts[1]))
    truth = [1] * len(parts[2]) + [0] * len(parts[3])
    return balanced_accuracy_score(truth, regression.predict(np.concatenate(parts[2:])))


def _control(controls: list[AnalysisControl], name: str) -> AnalysisControl:
    return next(control for control in controls if control.name == name)


def _no_change(chat: ChatModel) -> Tensor:
    return torch.ones(len(map_modules(chat.model)), dtype=torch.float64)


def test_the_retrained_accuracy_is_scikit_learns_on_the_perturbed_features(
    tiny_chat_model: ChatModel, small_probes: ProbeSet
):
    """For each module: fitted anew on the fitting prompts, scored on the others, classes weighing the same."""
    found = retrained_accuracies(tiny_chat_model, small_probes, GaussianPerturbation(), 4.0, [3, 4], batch_size=8)
    modules = map_modules(tiny_chat_model.model)
    expected = []
    for module in modules:
        with perturbed(tiny_chat_model.model, [module], 4.0, seed=3):
            expected.append(_retrained_by_hand(tiny_chat_model, small_probes))
    assert found.tolist() == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_a_perturbation_that_changes_nothing_retrains_the_same_classifier(
    tiny_chat_model: ChatModel, small_probes: ProbeSet
):
    """Then every module has the accuracy of the classifier on the intact features."""
    model = tiny_chat_model.model
    nothing = {m.name: torch.zeros_like(model.get_parameter(m.weight_name)) for m in map_modules(model)}
    found = retrained_accuracies(tiny_chat_model, small_probes, UpdatePerturbation([nothing]), 1.0, [0], batch_size=8)
    assert found.tolist() == pytest.approx([_retrained_by_hand(tiny_chat_model, small_probes)] * len(found))


def test_features_that_moved_are_told_from_features_that_are_lost():
    """Only modules whose unchanged classifier fell count, and the sentence has their number and both accuracies."""
    accuracies = torch.tensor([1.0, 0.95, 0.5, 0.3], dtype=torch.float64)
    lost = _retrained(torch.tensor([1.0, 0.2, 0.6, 0.8], dtype=torch.float64), accuracies)
    assert (lost.value, lost.passed) == (pytest.approx(0.7), True)
    assert "(2 modules, 40% on average)" in lost.sentence
    assert lost.sentence.endswith("reaches 70%: part of the information is gone.")
    moved = _retrained(torch.tensor([0.1, 0.2, 0.94, 1.0], dtype=torch.float64), accuracies)
    assert (moved.value, moved.passed) == (pytest.approx(0.97), False)
    assert "reaches 97%: the information has only moved" in moved.sentence


def test_where_no_classifier_fell_there_is_nothing_to_retrain():
    """Neither passed nor failed, without a number made up for it."""
    control = _retrained(torch.full((3,), 0.2, dtype=torch.float64), torch.full((3,), 0.9, dtype=torch.float64))
    assert (control.value, control.passed) == (None, None)
    assert "No perturbation took the unchanged classifier below 90 %" in control.sentence


def _clouds(distance: float, count: int = 60, hidden: int = 24) -> list[Tensor]:
    """Return the four parts of two normal clouds: fitting harmful and harmless, scored harmful and harmless."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.ones(hidden) / hidden**0.5
    return [
        torch.randn(count, hidden, generator=generator) + sign * distance / 2 * direction for sign in (1, -1, 1, -1)
    ]


def _probe(states: list[Tensor]) -> SecurityProbe:
    return SecurityProbe(fit_classifier(*states[:2]), {}, torch.zeros(1), [], [])


def test_shuffled_labels_teach_nothing_about_the_true_ones():
    """On separable features the classifier is right and those of shuffled labels are near chance: passed."""
    states = _clouds(distance=4.0)
    control = _random_labels(states, _probe(states), seed=0)
    assert control.value == pytest.approx(0.5, abs=0.15)
    assert control.passed
    assert f"{control.value:.0%} (chance: 50 %; of the shuffled labels themselves it learns " in control.sentence
    assert control.sentence.endswith("it reads the label.")


def test_a_classifier_no_better_than_shuffled_labels_does_not_pass():
    """Features without a difference: both are near chance, and the sentence says so."""
    states = _clouds(distance=0.0)
    control = _random_labels(states, _probe(states), seed=0)
    assert control.passed is False
    assert control.sentence.endswith("it reads little more than chance.")


def test_the_shuffled_labels_depend_on_the_seed_alone():
    """The same seed gives the same figure, whatever was drawn before."""
    states = _clouds(distance=1.0)
    probe = _probe(states)
    first = _random_labels(states, probe, seed=0)
    torch.manual_seed(99)
    assert _random_labels(states, probe, seed=0) == first
    assert _random_labels(states, probe, seed=50).value != first.value


def _prompts(part: str, texts: list[str]) -> list[Prompt]:
    return [Prompt(f"{part}-{i}", ({"role": "user", "content": text},)) for i, text in enumerate(texts)]


def _worded_probes(harmful: str, harmless: str) -> ProbeSet:
    """Make prompts of eight things for fitting and eight for scoring, worded by two templates."""
    words = [
        "car",
        "boat",
        "house",
        "phone",
        "piano",
        "statue",
        "letter",
        "wine",
        "bridge",
        "tent",
        "clock",
        "drone",
        "lamp",
        "chair",
        "ring",
        "coat",
    ]
    return make_probe_set(
        *(
            _prompts(f"{template}-{half}", [template.format(a=thing, b=words[i - 1]) for i, thing in chosen])
            for half, chosen in enumerate((list(enumerate(words))[:8], list(enumerate(words))[8:]))
            for template in (harmful, harmless)
        )
    )


def test_prompts_that_differ_in_their_words_do_not_pass():
    """If one class always steals and the other always washes, words alone say which it is."""
    probes = _worded_probes("how do I steal the {a} and the {b}", "how do I wash the {a} and the {b}")
    control = _words_alone(probes, _probe(_clouds(4.0)))
    assert (control.value, control.passed) == (1.0, False)
    assert "right for 100% of the scored prompts: they nearly give it away" in control.sentence


def test_prompts_of_the_same_words_pass():
    """If the classes differ in the order of their words alone, a bag of words is at chance."""
    probes = _worded_probes("use the {a} to break the {b}", "break the {b} to use the {a}")
    control = _words_alone(probes, _probe(_clouds(4.0)))
    assert control.value == pytest.approx(0.5, abs=0.2)
    assert control.passed
    assert f"right for {control.value:.0%} of the scored prompts: the words alone do not" in control.sentence


def test_an_unseen_source_passes_or_not_by_its_accuracy(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """With prompts that it recognises the classifier carries over; with their classes exchanged it does not."""
    probe = fit_probe(tiny_chat_model, tiny_probes, 64)
    harmful, harmless = tiny_probes.fit_harmful[:12], tiny_probes.fit_harmless[:9]
    states = [last_token_states(tiny_chat_model.model, tiny_chat_model.tokenizer, part) for part in (harmful, harmless)]
    hits = [probe.classifier.predict(part).double().mean().item() for part in states]
    accuracy = (hits[0] + 1 - hits[1]) / 2
    known = tiny_probes._replace(unseen=(harmful, harmless))
    exchanged = tiny_probes._replace(unseen=(harmless, harmful))
    same = _no_change(tiny_chat_model)
    for probes, value, passed, end in (
        (known, accuracy, True, "it carries over."),
        (exchanged, 1 - accuracy, False, "it does not carry over."),
    ):
        control = _control(analysis_controls(tiny_chat_model, probes, probe, same, same, 0, 16), "unseen source")
        assert control.value == pytest.approx(value)
        assert control.passed is passed
        first, second = len(probes.unseen[0]), len(probes.unseen[1])
        assert control.sentence.startswith(f"On {first} harmful and {second} harmless prompts from another source")
        assert control.sentence.endswith(f"right for {value:.0%}, classes weighing the same: {end}")


def test_an_unseen_source_that_was_not_given_is_said_to_be_untested(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Not passed and not failed."""
    same = _no_change(tiny_chat_model)
    probe = fit_probe(tiny_chat_model, tiny_probes, 64)
    control = _control(analysis_controls(tiny_chat_model, tiny_probes, probe, same, same, 0, 64), "unseen source")
    assert (control.value, control.passed) == (None, None)
    assert control.sentence.startswith("No prompts from another source were given")


def test_every_control_has_a_sentence_with_its_number(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Four controls in a fixed order, each a sentence that holds what was measured, if anything was."""
    probes = tiny_probes._replace(unseen=(tiny_probes.score_harmful, tiny_probes.score_harmless))
    fallen = 0.5 * _no_change(tiny_chat_model)
    controls = analysis_controls(
        tiny_chat_model, probes, fit_probe(tiny_chat_model, probes, 64), 1.3 * fallen, fallen, seed=0, batch_size=64
    )
    assert [control.name for control in controls] == [
        "retrained classifier",
        "random-label classifier",
        "topic-matched harmless prompts",
        "unseen source",
    ]
    for control in controls:
        assert control.passed is not None
        assert f"{control.value:.0%}" in control.sentence
        assert control.sentence.endswith(".")
