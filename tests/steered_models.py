"""A real Llama whose output is known: it says one thing if a certain word is anywhere in its prompt, else another.

Every token is a direction of its own in the residual stream. Attention looks at all tokens alike and copies the word's
direction into a flag; the head knows what follows each token, and what the flag changes. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
_STEER = 1000.0
"""How much the flag weighs: the share of one word in a prompt of hundreds is small."""


def save_steered_model(
    folder: Path,
    word: str,
    with_word: str,
    without_word: str,
    words: Iterable[str] = (),
    chat_template: str | None = None,
    context: int = 2048,
) -> Path:
    """Write a model in the Hugging Face layout.

    Args:
        folder: Where to.
        word: What the model looks for, between white space.
        with_word: What it says where the word is in the prompt; one token, whatever it holds.
        without_word: What it says otherwise.
        words: Other words that its tokenizer knows.
        chat_template: Of its tokenizer; None: without one.
        context: Tokens that it can read and say together.
    """
    listed = list(dict.fromkeys([*_SPECIAL, word, with_word, without_word, *words]))
    tokenizer = _tokenizer({text: index for index, text in enumerate(listed)}, chat_template)
    network = _network(len(listed) + len(listed) % 2 + 2, context)
    names = {text: index for index, text in enumerate(listed)}
    _steer(network, names[word], names[with_word], names[without_word], names["<eos>"], flag=len(listed))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(vocabulary: dict[str, int], chat_template: str | None) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _network(size: int, context: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def _steer(network: LlamaForCausalLM, word: int, with_word: int, without_word: int, end: int, flag: int) -> None:
    layer = network.model.layers[0]
    for name, parameter in network.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    network.model.embed_tokens.weight.copy_(torch.eye(len(network.model.embed_tokens.weight)))
    layer.self_attn.v_proj.weight[0, word] = 1.0  # queries and keys are zero, so that all tokens weigh alike
    layer.self_attn.o_proj.weight[flag, 0] = _STEER
    head = network.lm_head.weight
    head[without_word] = 1.0  # whatever the last token is
    head[without_word, flag] = 0.0
    head[with_word, flag] = 10.0
    for said in (with_word, without_word):
        head[:, said] = 0.0
        head[end, said] = 1e6
