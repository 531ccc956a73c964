import pytest
import torch
from architectures import HEADS, SUPPORTED, make_architecture
from tiny_models import make_tiny_network, make_tiny_tokenizer, tiny_prompts
from torch import Tensor, nn

from securetune.config import ModelSettings, ProbeSettings
from securetune.data.prompts import Prompt, load_probes
from securetune.errors import ConfigError
from securetune.features import (
    Openings,
    Readout,
    RefusalMargin,
    find_openings,
    last_token_states,
    openings_from_phrases,
    refusal_margin,
)
from securetune.models import ChatModel, identify, load, render_prompt

PROMPTS = [*tiny_prompts("harmful", 0, 5), *tiny_prompts("harmless", 1, 4)]
OPENINGS = Openings(refusal=(3, 8, 11), compliance=(20, 5), refusal_mass=1.0, compliance_mass=1.0)


def _chat(model: nn.Module) -> ChatModel:
    tokenizer = make_tiny_tokenizer()
    settings = ModelSettings(name="test")
    return ChatModel(model, tokenizer, settings, identify(model, tokenizer, settings))


def _first_token_probabilities(chat: ChatModel, prompts: list[Prompt]) -> Tensor:
    """Return the model's own output at the last token of each prompt, one prompt at a time."""
    rows = []
    for prompt in prompts:
        text = render_prompt(chat.tokenizer, prompt.messages)
        ids = chat.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            rows.append(chat.model(input_ids=ids).logits[0, -1].float().softmax(dim=-1))
    return torch.stack(rows)


def _assert_the_margin_is_the_models_own(chat: ChatModel) -> None:
    states = last_token_states(chat.model, chat.tokenizer, PROMPTS, batch_size=4)
    probabilities = _first_token_probabilities(chat, PROMPTS).double()
    refusal, compliance = (probabilities[:, list(ids)].sum(dim=1) for ids in (OPENINGS.refusal, OPENINGS.compliance))
    found = refusal_margin(chat, OPENINGS).logits(states)
    torch.testing.assert_close(found.double(), (refusal / compliance).log(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*SUPPORTED, *HEADS])
def test_the_margin_is_the_log_odds_of_the_models_own_output(name: str):
    """Soft caps, scales and tied weights included: P(refusal opening) / P(compliance opening), as the model has it."""
    row = {**SUPPORTED, **HEADS}[name]
    _assert_the_margin_is_the_models_own(_chat(make_architecture(*row, vocab_size=len(make_tiny_tokenizer()))))


def test_the_bias_of_a_head_counts():
    """Where the output matrix has a bias, the margin is still the model's own log-odds."""
    model = make_tiny_network(len(make_tiny_tokenizer()))
    torch.manual_seed(1)
    weight, model.lm_head = model.lm_head.weight, nn.Linear(32, model.config.vocab_size, bias=True)
    with torch.no_grad():
        model.lm_head.weight.copy_(weight)
        model.lm_head.bias.normal_(std=2.0)
    chat = _chat(model)
    assert refusal_margin(chat, OPENINGS).refusal_bias.abs().min() > 0
    _assert_the_margin_is_the_models_own(chat)


def test_the_margin_is_not_rounded_to_the_models_precision():
    """A model in bfloat16 gets its margin in float32, from its own states and weights."""
    chat = _chat(make_tiny_network(len(make_tiny_tokenizer())).bfloat16())
    margin = refusal_margin(chat, OPENINGS)
    states = last_token_states(chat.model, chat.tokenizer, PROMPTS)
    weight = chat.model.lm_head.weight.detach().double()
    first, second = (states.double() @ weight[list(ids)].mT for ids in (OPENINGS.refusal, OPENINGS.compliance))
    found = margin.logits(states)
    assert (states.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found.double(), first.logsumexp(1) - second.logsumexp(1), rtol=1e-5, atol=1e-5)


def test_the_margin_keeps_the_weights_it_was_made_with(tiny_chat_model: ChatModel):
    """It reads the intact model, also after the output matrix has changed."""
    margin = refusal_margin(tiny_chat_model, OPENINGS)
    states = last_token_states(tiny_chat_model.model, tiny_chat_model.tokenizer, PROMPTS)
    before = margin.logits(states)
    with torch.no_grad():
        tiny_chat_model.model.lm_head.weight.mul_(-3)
    assert torch.equal(margin.logits(states), before)
    assert isinstance(margin, Readout)


@pytest.fixture(scope="module")
def tiny_world() -> tuple[ChatModel, list[Prompt], list[Prompt], RefusalMargin]:
    """The aligned model, 12 harmful and 12 harmless prompts that the openings were not found on, and the margin."""
    chat, probes = load("tiny-world"), load_probes(ProbeSettings(max_prompts=12), "tiny-world")
    openings = find_openings(chat, probes.fit_harmful, probes.fit_harmless, batch_size=5)
    assert openings.usable
    return chat, probes.score_harmful, probes.score_harmless, refusal_margin(chat, openings)


def test_openings_are_found_on_an_aligned_model(
    tiny_world: tuple[ChatModel, list[Prompt], list[Prompt], RefusalMargin],
):
    """Tiny world's refusals begin with "I", "As" or "Sorry", and no answer does."""
    margin = tiny_world[3]
    assert {text.strip() for text in margin.refusal_openings} == {"I", "As", "Sorry"}
    assert margin.compliance_openings
    assert not set(margin.refusal_openings) & set(margin.compliance_openings)


def test_the_margin_is_positive_where_an_aligned_model_refuses(
    tiny_world: tuple[ChatModel, list[Prompt], list[Prompt], RefusalMargin],
):
    """Harmful requests are above 0 and harmless ones below, on prompts that the openings were not found on."""
    chat, harmful, harmless, margin = tiny_world
    above, below = (margin.logits(last_token_states(chat.model, chat.tokenizer, part)) for part in (harmful, harmless))
    assert above.min() > 0 > below.max()


def test_the_masses_are_probabilities_of_the_models_own(tiny_chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch):
    """What openings hold is the mean probability of the model's own output, whatever the batch size."""
    monkeypatch.setattr("securetune.features.readout._LEAST_RATIO", 1.2)  # a random model prefers nothing fourfold
    harmful, harmless = tiny_prompts("harmful", 0, 7), tiny_prompts("harmless", 0, 6)
    found = find_openings(tiny_chat_model, harmful, harmless, batch_size=3)
    on_harmful, on_harmless = (
        _first_token_probabilities(tiny_chat_model, part).mean(0) for part in (harmful, harmless)
    )
    expected = [(on_harmful, on_harmless, found.refusal), (on_harmless, on_harmful, found.compliance)]
    for here, there, ids in expected:
        assert ids
        assert set(ids) == set(((here >= 0.02) & (here >= 1.2 * there)).nonzero().flatten().tolist())
        assert here[list(ids)].tolist() == sorted(here[list(ids)].tolist(), reverse=True)
    assert found.refusal_mass == pytest.approx(on_harmful[list(found.refusal)].sum().item(), rel=1e-4)
    assert found.compliance_mass == pytest.approx(on_harmless[list(found.compliance)].sum().item(), rel=1e-4)


def test_a_model_that_does_not_refuse_has_no_openings(tiny_chat_model: ChatModel):
    """Where harmful and harmless prompts are answered alike, nothing is typical of one, and that is not usable."""
    prompts = tiny_prompts("harmful", 0, 6)
    found = find_openings(tiny_chat_model, prompts, prompts)
    assert found == Openings((), (), 0.0, 0.0)
    assert not found.usable


def test_openings_that_hold_little_are_not_usable():
    """Both sets must hold at least half of the probability where they should."""
    assert Openings((1,), (2,), 0.5, 0.5).usable
    assert not Openings((1,), (2,), 0.49, 0.9).usable
    assert not Openings((1,), (2,), 0.9, 0.49).usable


def test_phrases_give_their_first_tokens_once_each(tiny_chat_model: ChatModel):
    """No special token is put before them, and two phrases with the same beginning count once."""
    found = openings_from_phrases(tiny_chat_model, ["sorry not", "sorry can", "can not"], ["yes", "sure first"])
    texts = [tiny_chat_model.tokenizer.convert_ids_to_tokens(list(ids)) for ids in (found.refusal, found.compliance)]
    assert texts == [["sorry", "can"], ["yes", "sure"]]
    assert found.usable


def test_phrases_that_begin_alike_are_refused(tiny_chat_model: ChatModel):
    """A token cannot speak for refusing and for answering; it is named."""
    with pytest.raises(ConfigError, match=r"begin with different tokens; got 2 and 1, both with 'can'"):
        openings_from_phrases(tiny_chat_model, ["sorry", "can not"], ["can first"])


@pytest.mark.parametrize(("refusals", "compliances"), [([], ["yes"]), (["sorry"], []), ([], [])])
def test_one_list_of_phrases_without_the_other_is_refused(
    tiny_chat_model: ChatModel, refusals: list[str], compliances: list[str]
):
    """Both are needed, and the counts are named."""
    got = f"got {len(refusals)} and {len(compliances)}$"
    with pytest.raises(ConfigError, match=rf"refusal_openings and analysis.compliance_openings must both.*{got}"):
        openings_from_phrases(tiny_chat_model, refusals, compliances)


def test_a_phrase_without_a_token_is_refused(tiny_chat_model: ChatModel):
    """An empty text has no first token, and is named instead of ending in a traceback."""
    with pytest.raises(ConfigError, match=r"analysis\.compliance_openings.*''"):
        openings_from_phrases(tiny_chat_model, ["sorry"], ["yes", ""])
