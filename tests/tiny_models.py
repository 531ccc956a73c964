"""Small random models, a tokenizer for them, and prompts in its words."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from securetune.data.prompts import Prompt

ACTIONS = {"harmful": ("steal", "burn", "forge", "poison"), "harmless": ("wash", "sell", "paint", "repair")}
OBJECTS = ("car", "boat", "house", "phone", "piano", "statue", "letter", "wine", "bridge", "tent", "clock", "drone")
TEMPLATES = ("how do I {} a {} ?", "tell me how to {} the {}", "explain how to {} my {} today please")
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>", "<user>", "<assistant>")
OTHER_WORDS = ("sorry", "can", "not", "yes", "sure", "first", "then", "take", "find")

CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' <user> ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' <assistant> ' + message['content'] + ' <eos>' }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer with a chat template."""
    listed = [*SPECIAL, *ACTIONS["harmful"], *ACTIONS["harmless"], *OBJECTS, *OTHER_WORDS]
    listed += [word for template in TEMPLATES for word in template.split() if word != "{}"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(listed))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
    )


def make_tiny_network(vocabulary_size: int, seed: int = 0, layers: int = 2) -> LlamaForCausalLM:
    """Build a random Llama of two layers and width 32, with grouped key and value heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,  # large enough that attention and the gates do something
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return LlamaForCausalLM(config).eval()


def tiny_conversations(objects: int) -> list[dict[str, Any]]:
    """Return harmless questions with answers, all in the model's words: four actions on each of the first objects."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"how do I {action} a {thing} ?"},
                {"role": "assistant", "content": f"sure first take the {thing} then {action}"},
            ]
        }
        for action in ACTIONS["harmless"]
        for thing in OBJECTS[:objects]
    ]


def tiny_prompts(kind: str, part: int, count: int) -> list[Prompt]:
    """Make prompts of one kind; those of different parts (0 or 1) never share a text."""
    texts = [t.format(action, thing) for action in ACTIONS[kind] for t in TEMPLATES for thing in OBJECTS[part::2]]
    chosen = texts[:: max(1, len(texts) // count)][:count]
    return [
        Prompt(f"{kind}-{part}-{index}", ({"role": "user", "content": text},), {}) for index, text in enumerate(chosen)
    ]
