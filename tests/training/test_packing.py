"""Rows in one sequence: the same losses as alone, fewer steps, and a refusal where rows would see each other."""

import json
from pathlib import Path

import pytest
import torch
from architectures import SUPPORTED, make_architecture
from short_training import SHORT, TrainShort, make_rows
from tiny_models import make_tiny_network, make_tiny_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from securetune.artifacts import read_json_lines
from securetune.config import ModelSettings, TrainingSettings
from securetune.data.conversations import Conversation
from securetune.errors import ConfigError
from securetune.training import train
from securetune.training.encoding import EncodedConversations, encode_conversations
from securetune.training.packing import PackedRows, check_rows_stay_apart, collator, pack_rows

LENGTH = 48
TOKENIZER = make_tiny_tokenizer()
REFUSED = {"gpt-oss"}
"""Its mask is made without the positions."""


def uneven_rows() -> list[Conversation]:
    """Rows of very different lengths, some of several turns."""
    rows = make_rows()
    joined = [{"messages": [*rows[n]["messages"], *rows[n + 1]["messages"]]} for n in range(0, 20, 2)]
    return [*rows[20:], *joined]


@pytest.fixture(scope="module")
def encoded() -> EncodedConversations:
    return encode_conversations(TOKENIZER, uneven_rows(), LENGTH)


@pytest.fixture(scope="module")
def packed(encoded: EncodedConversations) -> PackedRows:
    return pack_rows(encoded.dataset, encoded.counts)


def network(attention: str) -> LlamaForCausalLM:
    made = make_tiny_network(len(TOKENIZER))
    made.set_attn_implementation(attention)
    return made


def token_losses(model: torch.nn.Module, rows: list[dict], packing: bool) -> list[tuple[int, float]]:
    """Return each learned token with its loss, sorted; batches are made as in training."""
    losses = []
    for begin in range(0, len(rows), 4):
        batch = collator(TOKENIZER, packing)(rows[begin : begin + 4])
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits[:, :-1]
        found = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        losses += zip(labels[labels != -100].tolist(), found[labels != -100].tolist(), strict=True)
    return sorted(losses)


def assert_same_losses(model: torch.nn.Module, encoded: EncodedConversations, packed: PackedRows) -> None:
    alone = token_losses(model, list(encoded.dataset), packing=False)
    together = token_losses(model, list(packed.dataset), packing=True)
    assert [token for token, _ in together] == [token for token, _ in alone]
    assert len(together) == encoded.counts.answer_tokens
    assert [loss for _, loss in together] == pytest.approx([loss for _, loss in alone], abs=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_losses_of_rows(attention: str, encoded: EncodedConversations, packed: PackedRows) -> None:
    """Each token's loss is the same in a packed sequence as in a row of its own, within 1e-5."""
    assert_same_losses(network(attention), encoded, packed)


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_architecture(name: str, encoded: EncodedConversations, packed: PackedRows) -> None:
    """Each architecture either gives the same losses, also with a sliding window or experts, or is refused."""
    model = make_architecture(*SUPPORTED[name], vocab_size=len(TOKENIZER))
    if name in REFUSED:
        with pytest.raises(ConfigError, match="would see each other"):
            check_rows_stay_apart(model, TOKENIZER, packed.dataset, bf16=False)
        return
    check_rows_stay_apart(model, TOKENIZER, packed.dataset, bf16=False)
    assert_same_losses(model, encoded, packed)


def test_every_row_is_packed_whole(encoded: EncodedConversations, packed: PackedRows) -> None:
    """Packing keeps every row with its labels, cuts none, and counts how full the sequences are."""
    rows = []
    for sequence in packed.dataset:
        assert len(sequence["input_ids"]) == sum(sequence["seq_lengths"]) <= LENGTH
        begin = 0
        for length in sequence["seq_lengths"]:
            part = slice(begin, begin + length)
            rows.append((sequence["input_ids"][part], sequence["labels"][part]))
            begin += length
    assert sorted(rows) == sorted((row["input_ids"], row["labels"]) for row in encoded.dataset)
    assert packed.counts.packed_sequences == len(packed.dataset) < len(encoded.dataset)
    assert packed.counts.packing_efficiency == encoded.counts.tokens / (len(packed.dataset) * LENGTH)
    assert packed.note.startswith(f"{len(encoded.dataset)} rows were packed into {len(packed.dataset)} sequences of 48")


def blind_attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, **more: object):
    """Attend to everything before, whatever the mask says."""
    return sdpa_attention_forward(module, query, key, value, attention_mask=None, **{**more, "is_causal": True})


def test_a_blind_attention_is_refused(packed: PackedRows) -> None:
    """A model whose attention does not tell the rows apart is refused with a sentence; others are not."""
    AttentionInterface.register("blind", blind_attention)
    AttentionMaskInterface.register("blind", sdpa_mask)
    for attention in ("sdpa", "eager"):
        check_rows_stay_apart(network(attention), TOKENIZER, packed.dataset, bf16=False)
        check_rows_stay_apart(network(attention), TOKENIZER, packed.dataset, bf16=True)
        check_rows_stay_apart(network(attention).bfloat16(), TOKENIZER, packed.dataset, bf16=False)
    for model, bf16 in ((network("blind"), False), (network("blind"), True), (network("blind").bfloat16(), False)):
        with pytest.raises(ConfigError, match='see each other in a model of type "llama" with the attention "blind"'):
            check_rows_stay_apart(model, TOKENIZER, packed.dataset, bf16)


def test_a_packed_training(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A packed epoch has the steps of its sequences, begins with the loss of the rows, and says how full they were."""
    data = tmp_path / "data.json"
    data.write_text(json.dumps(uneven_rows()))
    results = {}
    for packing in (False, True):
        settings = TrainingSettings(
            **{**SHORT, "max_steps": None},
            method="ift",
            num_train_epochs=2,
            max_length=LENGTH,
            packing=packing,
            warmup_steps=0,
        )
        whole = settings.model_copy(update={"per_device_train_batch_size": 100})
        model = ModelSettings(name=str(tiny_model_dir))
        results[packing] = train(settings, model, str(data), tmp_path / f"steps-{packing}")
        train(whole, model, str(data), tmp_path / f"whole-{packing}")
    first = [next(read_json_lines(tmp_path / f"whole-{packing}" / "training_log.jsonl")) for packing in (False, True)]
    assert first[1]["loss_nats_per_token"] == pytest.approx(first[0]["loss_nats_per_token"], abs=1e-5)
    sequences = results[True].data.packed_sequences
    assert results[False].data.packed_sequences is None
    assert results[True].resolved["main_steps"] == 2 * -(-sequences // 4)
    assert results[False].resolved["main_steps"] == 2 * -(-30 // 4)
    assert results[True].data.shapes == {"messages": 30}
    assert any("% full" in note for note in results[True].notes)


def test_packed_adapters(train_short: TrainShort, tmp_path: Path) -> None:
    """Packing goes with LoRA and with both phases, and the same training twice gives the same result."""
    settings = {"tune": "lora", "packing": True, "max_length": LENGTH}
    result = train_short(tmp_path / "first", method="swat", **settings)
    assert [phase.name for phase in result.phases] == ["warmup", "main"]
    assert (result.data.rows, result.data.packed_sequences) == (40, 20)  # rows of 18 tokens
    again = train_short(tmp_path / "again", method="swat", **settings)
    assert again.update == result.update
