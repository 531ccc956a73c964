import pytest
import torch

from securetune.data.prompts import ProbeSet, make_probe_set
from securetune.errors import RunError
from securetune.features import fit_classifier, fit_probe, last_token_states
from securetune.models import ChatModel


def test_the_figures_are_accuracies_on_the_named_prompts(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Accuracy on scored harmful prompts is the share of positive logits, and the counts are those of the lists."""
    probe = fit_probe(tiny_chat_model, tiny_probes, batch_size=16)
    states = last_token_states(tiny_chat_model.model, tiny_chat_model.tokenizer, tiny_probes.score_harmful)
    assert probe.figures["scored_harmful_accuracy"] == (probe.classifier.logits(states) > 0).double().mean().item()
    assert probe.figures["scored_harmful_count"] == len(tiny_probes.score_harmful)
    assert probe.figures["fit_harmful_accuracy"] > 0.9


def test_a_classifier_that_only_guesses_stops_the_run(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """With the scored classes exchanged nothing is recognised, and the accuracies are named."""
    exchanged = make_probe_set(
        tiny_probes.fit_harmful, tiny_probes.fit_harmless, tiny_probes.score_harmless, tiny_probes.score_harmful
    )
    with pytest.raises(RunError, match=r"must recognise at least 75%.*got .*% of the harmful"):
        fit_probe(tiny_chat_model, exchanged, batch_size=16)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_states_that_are_not_numbers_stop_the_run_and_name_the_layer(
    tiny_chat_model: ChatModel, tiny_probes: ProbeSet, layer: int, value: float
):
    """The first layer whose states are not finite is the one to look at, not the last that suffers from it."""
    with torch.no_grad():
        tiny_chat_model.model.model.layers[layer].mlp.down_proj.weight[3, 5] = value
    with pytest.raises(RunError, match=rf"states after layer {layer} \(counted from 0\) are not finite.*model\.dtype"):
        fit_probe(tiny_chat_model, tiny_probes, batch_size=16)


def test_each_layer_has_a_classifier_of_its_own(tiny_chat_model: ChatModel, tiny_probes: ProbeSet):
    """Fitted on that layer's states and scored on others', classes weighing the same; the last is the classifier."""
    probe = fit_probe(tiny_chat_model, tiny_probes, batch_size=16)
    model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
    parts = [last_token_states(model, tokenizer, part, layers="all") for part in tiny_probes[:4]]
    assert probe.layer_classifiers[-1] is probe.classifier
    for layer, classifier in enumerate(probe.layer_classifiers):
        fit_harmful, fit_harmless, harmful, harmless = (states[layer] for states in parts)
        expected = fit_classifier(fit_harmful, fit_harmless)
        torch.testing.assert_close(classifier.logits(harmful), expected.logits(harmful), rtol=1e-3, atol=1e-3)
        hits = expected.predict(harmful).double().mean() + 1 - expected.predict(harmless).double().mean()
        assert probe.layer_accuracies[layer] == pytest.approx(hits.item() / 2)
