import pytest
import torch
from architectures import SUPPORTED, make_architecture
from tiny_models import make_tiny_tokenizer, tiny_prompts

from securetune.data.prompts import Prompt
from securetune.features import FullPass, LayerReplay, last_token_states, make_batches, open_replay, perturbed
from securetune.features.hidden_states import decoder_of, final_states
from securetune.models import ChatModel, map_modules, render_prompt

PROMPTS = [*tiny_prompts("harmful", 0, 9), *tiny_prompts("harmless", 0, 9), *tiny_prompts("harmful", 1, 9)]


@pytest.mark.parametrize("name", SUPPORTED)
def test_states_are_those_of_each_prompt_alone(name: str):
    """Batching, sorting by length and padding change nothing, in any architecture."""
    tokenizer = make_tiny_tokenizer()
    model = make_architecture(*SUPPORTED[name], vocab_size=len(tokenizer))
    states = last_token_states(model, tokenizer, PROMPTS, batch_size=5)
    for index in (0, 7, 26):
        ids = tokenizer(
            render_prompt(tokenizer, PROMPTS[index].messages), add_special_tokens=False, return_tensors="pt"
        )
        with torch.no_grad():
            alone = decoder_of(model)(**ids).last_hidden_state[0, -1]
        torch.testing.assert_close(states[index], alone, rtol=1e-4, atol=1e-5)


def test_the_batch_size_does_not_matter(tiny_chat_model: ChatModel):
    """One prompt at a time gives what all at once give."""
    model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
    one, all_at_once = (last_token_states(model, tokenizer, PROMPTS, batch_size=size) for size in (1, 100))
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-5)


def test_all_layers_end_with_the_final_state(tiny_chat_model: ChatModel):
    """The last of the layers' states is the one after the final norm."""
    model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
    layers = last_token_states(model, tokenizer, PROMPTS, batch_size=8, layers="all")
    assert layers.shape == (2, len(PROMPTS), 32)
    torch.testing.assert_close(layers[-1], last_token_states(model, tokenizer, PROMPTS, batch_size=8))


@pytest.mark.parametrize("name", SUPPORTED)
def test_replaying_layers_gives_the_same_states_as_whole_passes(name: str):
    """From every layer, and with a module of that layer perturbed, in any architecture; and none falls back."""
    tokenizer = make_tiny_tokenizer()
    model = make_architecture(*SUPPORTED[name], vocab_size=len(tokenizer))
    batches = make_batches(tokenizer, PROMPTS, 5, model.device)
    replay = open_replay(model, batches)
    assert isinstance(replay, LayerReplay)
    for layer in (0, 1):
        replay.advance_to(layer)
        torch.testing.assert_close(replay.final_states(), final_states(model, batches))
        module = next(module for module in map_modules(model) if module.layer == layer)
        with perturbed(model, [module], 1.0, seed=0):
            torch.testing.assert_close(replay.final_states(), final_states(model, batches))


def test_a_decoder_that_does_more_than_call_its_layers_gets_whole_passes(tiny_chat_model: ChatModel):
    """A replay that would be wrong is found out and not used."""
    decoder = tiny_chat_model.model.model
    handle = decoder.register_forward_hook(
        lambda module, args, output: setattr(output, "last_hidden_state", output.last_hidden_state * 2)
    )
    batches = make_batches(tiny_chat_model.tokenizer, PROMPTS, 8, tiny_chat_model.model.device)
    source = open_replay(tiny_chat_model.model, batches)
    assert isinstance(source, FullPass)
    torch.testing.assert_close(source.final_states(), final_states(tiny_chat_model.model, batches))
    handle.remove()


def test_a_replay_cannot_go_back(tiny_chat_model: ChatModel):
    """The inputs of the layers below are gone."""
    replay = LayerReplay(
        tiny_chat_model.model, make_batches(tiny_chat_model.tokenizer, PROMPTS, 8, torch.device("cpu"))
    )
    replay.advance_to(1)
    with pytest.raises(ValueError, match="layer must be at least 1"):
        replay.advance_to(0)


def test_no_hook_is_left_on_the_model(tiny_chat_model: ChatModel):
    """Recording how the layers are called leaves nothing behind."""
    open_replay(tiny_chat_model.model, make_batches(tiny_chat_model.tokenizer, PROMPTS, 8, torch.device("cpu")))
    assert not any(module._forward_pre_hooks for module in tiny_chat_model.model.modules())


def test_the_state_is_read_where_the_answer_begins(tiny_chat_model: ChatModel):
    """Another last word, but the same generation prompt: the state is still at the prompt's very last token."""
    tokenizer = tiny_chat_model.tokenizer
    prompts = [Prompt(str(i), ({"role": "user", "content": text},)) for i, text in enumerate(["wash", "wash the car"])]
    batch = make_batches(tokenizer, prompts, 8, torch.device("cpu"))[0]
    last_ids = batch.input_ids[torch.arange(2), batch.last]
    assert tokenizer.convert_ids_to_tokens(last_ids.tolist()) == ["<assistant>", "<assistant>"]
