import pytest

from securetune.data.prompts import ProbeSet, make_probe_set
from securetune.errors import RunError
from securetune.features import fit_probe, last_token_states
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
