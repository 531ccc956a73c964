"""Tiny random models of the architectures that map_modules knows, and of some that it must refuse.

A row added to `SUPPORTED` gets all the tests that run over architectures.
"""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
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

WITHOUT_GATE = ("phi", "starcoder2", "gpt2", "gpt-neox")

# Several projections in one matrix.
FUSED: dict[str, tuple[type[PreTrainedConfig], dict[str, object]]] = {
    "phi3": (Phi3Config, {"eos_token_id": 3, "bos_token_id": 2}),
    "glm4": (Glm4Config, {"eos_token_id": 3, "head_dim": 8}),
    "gpt2": (GPT2Config, {"n_inner": 48, "num_key_value_heads": 4, "eos_token_id": 3, "bos_token_id": 2}),
    "gpt-neox": (GPTNeoXConfig, {"eos_token_id": 3, "bos_token_id": 2}),
}

# The matrices of all experts in one parameter.
EXPERTS: dict[str, tuple[type[PreTrainedConfig], dict[str, object]]] = {
    "mixtral": (MixtralConfig, {"num_local_experts": 4}),
    "qwen3-moe": (
        Qwen3MoeConfig,
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "head_dim": 8,
            "mlp_only_layers": [1],  # a plain layer after one with experts
        },
    ),
    "gpt-oss": (
        GptOssConfig,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "eos_token_id": 3, "sliding_window": 8},
    ),
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
    "phi": (PhiConfig, {"eos_token_id": 3, "bos_token_id": 2}),
    "starcoder2": (Starcoder2Config, {"eos_token_id": 3, "bos_token_id": 2}),
    **FUSED,
    **EXPERTS,
}

# Heads that do something to the logits after the output matrix.
HEADS: dict[str, tuple[type[PreTrainedConfig], dict[str, object]]] = {
    "gemma2 with a low soft cap": (Gemma2Config, {"head_dim": 8, "final_logit_softcapping": 1.5}),
    "gemma3 with a soft cap": (Gemma3TextConfig, {"head_dim": 8, "final_logit_softcapping": 1.5}),
    "granite with scaled logits": (GraniteConfig, {"logits_scaling": 8.0}),
    "cohere with scaled logits": (CohereConfig, {"logit_scale": 0.25}),
}

UNSUPPORTED: dict[str, tuple[type[PreTrainedConfig], dict[str, object], str]] = {
    "falcon": (FalconConfig, {"eos_token_id": 3, "bos_token_id": 2}, r"lacks Q, K, V, O.*query_key_value"),
    "opt": (OPTConfig, {"word_embed_proj_dim": 32, "eos_token_id": 3}, r"layer 0 lacks O, .*self_attn\.out_proj"),
    "qwen2-moe": (
        Qwen2MoeConfig,
        {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
        r"layer 0 has (Gate|Up|Down) twice.*mlp\.shared_expert\.gate_proj",
    ),
    "deepseek-v3": (
        DeepseekV3Config,
        {"n_routed_experts": 4, "first_k_dense_replace": 2, "num_key_value_heads": 4},
        r"lacks Q, K, V.*self_attn\.q_a_proj",
    ),
}


def make_architecture(kind: type[PreTrainedConfig], extra: dict[str, object], vocab_size: int) -> PreTrainedModel:
    """Build a random model. Names that an architecture calls otherwise (GPT-2's `n_embd`) find their place."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(vocab_size=vocab_size, **{**_SHAPE, **extra})).eval()
