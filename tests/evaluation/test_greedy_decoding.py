"""Batches that stay full: the same tokens as one prompt at a time, whatever joins, leaves or does not fit."""

import inspect
import random
from dataclasses import replace

import pytest
import torch
from conftest import make_tiny_network
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from securetune.errors import RunError
from securetune.evaluation.batch_limits import BatchLimit, batch_limit, bytes_per_token
from securetune.evaluation.generation import greedy_settings
from securetune.evaluation.greedy_decoding import Decoded, decode_greedily, keeps_full_cache
from securetune.models import ChatModel

VOCABULARY = 60
ROOM = 24


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return make_tiny_network(VOCABULARY)


@pytest.fixture(scope="module")
def sliding() -> MistralForCausalLM:
    """A model whose layers see eight tokens back."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, sliding_window=8, initializer_range=0.2, eos_token_id=3, **sizes
    )
    return MistralForCausalLM(config).eval()


def prompts(count: int = 30) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(4, VOCABULARY) for _ in range(draw.choice([3, 4, 9, 30]))] for _ in range(count)]


def rooms(count: int = 30) -> list[int]:
    return [ROOM - (len(prompt) == 30) * 10 for prompt in prompts(count)]


def decoded(network: PreTrainedModel, tokenizing: ChatModel, limit: BatchLimit) -> list[Decoded]:
    network.generation_config.eos_token_id = list(range(3, 8))  # so that answers end after different lengths
    settings = greedy_settings(replace(tokenizing, model=network), ROOM)
    found = list(decode_greedily(network, prompts(), rooms(), settings, limit))
    assert sorted(each.position for each in found) == list(range(len(prompts())))
    return sorted(found)


def plain(network: PreTrainedModel, prompt: list[int], room: int) -> tuple[list[int], bool]:
    """The reference: no padding, no cache, one argmax at a time."""
    new: list[int] = []
    with torch.no_grad():
        while len(new) < room:
            token = int(network(torch.tensor([prompt + new])).logits[0, -1].argmax())
            if 3 <= token < 8:
                return new, True
            new.append(token)
    return new, False


@pytest.mark.parametrize("kind", ["llama", "sliding"])
def test_tokens_equal_a_plain_greedy_loop(
    kind: str, tiny_chat_model: ChatModel, request: pytest.FixtureRequest
) -> None:
    """Whatever the limit, each prompt gets bit for bit the tokens of one argmax at a time, in both kinds of batches."""
    network = request.getfixturevalue(kind)
    assert keeps_full_cache(network) == (kind == "llama")
    expected = [plain(network, prompt, room) for prompt, room in zip(prompts(), rooms(), strict=True)]
    lengths = {len(tokens) for tokens, _ in expected}
    assert len(lengths) > 5  # otherwise nothing would leave early
    assert {finished for _, finished in expected} == {True, False}
    for limit in (BatchLimit(1), BatchLimit(4), BatchLimit(7), BatchLimit(100), BatchLimit(100, tokens=200)):
        found = decoded(network, tiny_chat_model, limit)
        assert [(each.token_ids, each.finished) for each in found] == expected, limit


def test_short_prompts_begin_first_and_a_full_batch_is_refilled(
    llama: LlamaForCausalLM, tiny_chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are read in the order of their lengths, never more than fit, in fewer steps than without refilling."""
    read: list[tuple[int, int]] = []
    steps: list[tuple[int, int]] = []
    forward = llama.forward

    def watched(input_ids, **options):
        (steps if input_ids.shape[1] == 1 else read).append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **options)

    watched.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(llama, "forward", watched)
    decoded(llama, tiny_chat_model, BatchLimit(8))
    assert [width for _, width in read] == sorted(width for _, width in read)
    assert sum(rows for rows, _ in read) == len(prompts())
    assert max(rows for rows, _ in [*read, *steps]) <= 8
    assert len(read) > 4  # refilled before all eight had ended
    static = 0
    in_order = sorted(range(30), key=lambda index: len(prompts()[index]))
    taken = [len(plain(llama, prompts()[index], rooms()[index])[0]) for index in in_order]
    for start in range(0, 30, 8):
        static += max(taken[start : start + 8])
    assert len(steps) < 0.9 * static


@pytest.mark.parametrize("kind", ["llama", "sliding"])
@pytest.mark.parametrize("message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    kind: str, message: str, tiny_chat_model: ChatModel, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a batch does not fit, in whatever step, the answers are those of a batch that does."""
    network = request.getfixturevalue(kind)
    expected = decoded(network, tiny_chat_model, BatchLimit(2))
    forward = network.forward
    refused: list[int] = []

    def small(input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **options):
        width = attention_mask.shape[-1] if attention_mask is not None else 0
        if input_ids.shape[0] * width > 150:
            refused.append(input_ids.shape[0])
            raise (torch.OutOfMemoryError if "CUDA" in message else RuntimeError)(message)
        return forward(input_ids, attention_mask, position_ids, past_key_values, **options)

    monkeypatch.setattr(network, "forward", small)
    assert decoded(network, tiny_chat_model, BatchLimit(16)) == expected
    assert refused[0] == 16
    assert len(refused) >= 2


def test_one_prompt_too_large_is_a_clear_error(
    llama: LlamaForCausalLM, tiny_chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If not even one prompt fits, the run ends with a line that says which length failed and what to lower."""

    def full(input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(llama, "forward", full)
    with pytest.raises(
        RunError, match="out of memory on cpu with a single prompt of 3 tokens and an answer of up to 24"
    ):
        decoded(llama, tiny_chat_model, BatchLimit(4))


def test_other_errors_are_not_taken_for_memory(
    llama: LlamaForCausalLM, tiny_chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A RuntimeError of another kind comes through."""

    def broken(input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **options):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(llama, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        decoded(llama, tiny_chat_model, BatchLimit(4))


def test_limits_count_rows_and_tokens(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is taken as it is; `auto` counts the tokens that half of the free memory holds; one row always fits."""
    assert batch_limit(llama, 5) == BatchLimit(5)
    # 2 layers × 2 heads × 8 values × keys and values, 4 × 32 + 3 × 48 activations, 4 bytes each
    assert bytes_per_token(llama) == (64 + 272) * 4
    monkeypatch.setattr("os.sysconf", {"SC_AVPHYS_PAGES": 336 * 2000, "SC_PAGE_SIZE": 4}.__getitem__)
    assert batch_limit(llama, "auto") == BatchLimit(128, 1000)
    assert [BatchLimit(64, 1000).rows_of(width) for width in (10, 20, 400, 1001)] == [64, 50, 2, 1]
    assert BatchLimit(64, 1000).halved(20) == BatchLimit(10, 1000)
    assert BatchLimit(64).halved(1) == BatchLimit(1)
