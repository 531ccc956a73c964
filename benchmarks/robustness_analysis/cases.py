"""What the methods are measured on: a model, prompts, and a classifier as the readout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from securetune.config import ModelSettings, ProbeSettings
from securetune.data.prompts import Prompt, load_probes
from securetune.features import SafetyClassifier, fit_probe
from securetune.models import ChatModel, ProjectionModule, encode_prompts, identify, load

WORDS = 500
"""Words that the prompts of random models are made of."""

TEMPLATE = "{% for message in messages %}{{ '<user> ' + message['content'] }}{% endfor %}{{ ' <assistant>' }}"


class Shape(NamedTuple):
    """A Llama with random weights.

    Attributes:
        layers: Number of layers.
        width: Of the hidden states.
        intermediate: Width of the MLPs.
        heads: Query heads.
        key_value_heads: Fewer than `heads` where they are grouped.
        vocabulary: Rows of the embedding and of the output matrix.
        dtype: Precision of the weights.
    """

    layers: int
    width: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int = 1000
    dtype: str = "float32"


@dataclass(frozen=True)
class Case:
    """What to measure on, small enough to be sent to another process.

    Attributes:
        size: What the rows call it.
        shape: The random model; None is the embedded tiny world.
        prompts: Number of prompts; tiny world has 64 at most.
        tokens: Length of each prompt of a random model, with what the chat template adds.
        device: `cpu` or `cuda`.
        batch_size: Prompts a pass, for all methods.
    """

    size: str
    shape: Shape | None
    prompts: int
    tokens: int = 24
    device: str = "cpu"
    batch_size: int = 64


class Bench(NamedTuple):
    """A case with everything loaded.

    Attributes:
        case: What it was made from.
        chat: The model.
        prompts: Requests.
        readout: The classifier.
    """

    case: Case
    chat: ChatModel
    prompts: list[Prompt]
    readout: SafetyClassifier


class Work(NamedTuple):
    """What to perturb, and on which prompts. Methods that do not sweep take the prompts only."""

    modules: Sequence[ProjectionModule]
    seeds: Sequence[int]
    prompts: Sequence[Prompt]


Run = Callable[[Work], Tensor | None]
"""Does the work; a sweep returns the classifier's logits, (module, seed, prompt)."""


class PaddedBatch(NamedTuple):
    """Prompts in the order in which they were given, padded on the right."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]


SIZES: dict[str, Shape | None] = {
    "tiny-world": None,
    "small": Shape(layers=12, width=512, intermediate=1376, heads=8, key_value_heads=8),
    "1b": Shape(16, 2048, 8192, 32, 8, vocabulary=128256, dtype="bfloat16"),
    "7b": Shape(32, 4096, 11008, 32, 32, vocabulary=32000, dtype="bfloat16"),
}
"""The last two have the shapes of Llama 3.2 1B and Llama 2 7B and need a GPU."""


def open_case(case: Case) -> Bench:
    """Load or make the model, the prompts and the classifier; the same every time."""
    if case.shape is None:
        chat = load(ModelSettings(name="tiny-world", device=case.device, dtype="float32"))
        probes = load_probes(ProbeSettings(max_prompts=64), "tiny-world")
        classifier = fit_probe(chat, probes, case.batch_size).classifier
        return Bench(case, chat, probes.score_harmful[: case.prompts], classifier)
    network, tokenizer = _random_model(case.shape, case.device), _word_tokenizer()
    settings = ModelSettings(name=case.size)
    chat = ChatModel(network, tokenizer, settings, identify(network, tokenizer, settings))
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(case.shape.width, generator=generator, dtype=torch.float64)
    return Bench(case, chat, _random_prompts(case), SafetyClassifier(direction, bias=0.0))


def padded_batches(bench: Bench, prompts: Sequence[Prompt]) -> Iterator[PaddedBatch]:
    """Render and tokenize prompts in batches, as one would write it without us."""
    device = bench.chat.model.device
    for start in range(0, len(prompts), bench.case.batch_size):
        chunk = prompts[start : start + bench.case.batch_size]
        batch = encode_prompts(bench.chat.tokenizer, [prompt.messages for prompt in chunk], padding_side="right")
        yield PaddedBatch(batch["input_ids"].to(device), batch["attention_mask"].to(device))


def _random_model(shape: Shape, device: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(getattr(torch, shape.dtype))  # so that a large model never exists in float32
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(usual)


def _word_tokenizer() -> PreTrainedTokenizerFast:
    listed = ["<pad>", "<unk>", "<user>", "<assistant>", *(f"w{index}" for index in range(WORDS))]
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(listed)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<unk>", chat_template=TEMPLATE
    )


def _random_prompts(case: Case) -> list[Prompt]:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(WORDS, (case.prompts, case.tokens - 2), generator=generator)  # the template adds two
    texts = [" ".join(f"w{word}" for word in row) for row in rows.tolist()]
    return [Prompt(f"random-{index}", ({"role": "user", "content": text},), {}) for index, text in enumerate(texts)]
