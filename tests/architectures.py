"""Tiny random models of the architectures that map_modules knows, and of some that it must refuse.

A row added to `SUPPORTED` gets all the tests that run over architectures.
"""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}

SUPPORTED: dict[str, tuple[type[PreTrainedConfig], dict[str, object]]] = {
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, {"sliding_window": 8}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 8}),
    "gemma2": (Gemma2Config, {"head_dim": 8}),
    "gemma3": (Gemma3TextConfig, {"head_dim": 8}),
    "olmo2": (Olmo2Config, {}),
    "granite": (GraniteConfig, {}),
    "smollm3": (SmolLM3Config, {}),
}

# Heads that do something to the logits after the output matrix.
HEADS: dict[str, tuple[type[PreTrainedConfig], dict[str, object]]] = {
    "gemma2 with a low soft cap": (Gemma2Config, {"head_dim": 8, "final_logit_softcapping": 1.5}),
    "gemma3 with a soft cap": (Gemma3TextConfig, {"head_dim": 8, "final_logit_softcapping": 1.5}),
    "granite with scaled logits": (GraniteConfig, {"logits_scaling": 8.0}),
    "cohere with scaled logits": (CohereConfig, {"logit_scale": 0.25}),
}

UNSUPPORTED: dict[str, tuple[type[PreTrainedConfig], dict[str, object], str]] = {
    "phi3": (Phi3Config, {"eos_token_id": 3, "bos_token_id": 2}, r"lacks Q, K, V, Gate, Up.*self_attn\.qkv_proj"),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4}, r"lacks Q, K, V, O, Gate, Up, Down.*attn\.c_attn"),
    "gpt-neox": (GPTNeoXConfig, {}, r"lacks Q, K, V, O, Gate, Up, Down.*attention\.query_key_value"),
    "mixtral": (MixtralConfig, {"num_local_experts": 2}, r"lacks Gate, Up, Down.*mlp\.experts"),
}


def make_architecture(kind: type[PreTrainedConfig], extra: dict[str, object], vocab_size: int) -> PreTrainedModel:
    """Build a random model."""
    torch.manual_seed(0)
    shape = {} if kind is GPT2Config else _SHAPE
    return AutoModelForCausalLM.from_config(kind(vocab_size=vocab_size, **{**shape, **extra})).eval()
