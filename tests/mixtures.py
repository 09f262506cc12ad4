"""Random mixtures of experts of a few thousand weights, one for each habit of their families, that
fit the byte tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fakes import byte_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts_per_tok": 2,
}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}

MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 32},
    "gpt_oss": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "deepseek_v3": {**ROUTED, **LATENT, "num_key_value_heads": 4},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "llama4_text": {
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
    },
    "jetmoe": {"num_local_experts": 4, "kv_channels": 16, "activation_function": "silu"},
    "afmoe": {"num_experts": 4, "num_dense_layers": 1},
    "lfm2_moe": {
        "num_experts": 4,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"],
    },
    "nemotron_h": {
        "n_routed_experts": 4,
        "moe_shared_expert_intermediate_size": 32,
        "mamba_num_heads": 4,
    },
}
"""Family -> what its configuration needs beside `SHAPE`."""

ROUTERS = ("gate", "router", "router.layer", "gate.wg", "router.gate", "shared_expert_gate")
"""Last parts of the names of what weighs experts, in these families."""


def mixture(family: str, seed: int = 0, **settings: Any) -> Any:
    """A random model of the family, the same for the same seed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **{**SHAPE, **MIXTURES[family], **settings})
        return AutoModelForCausalLM.from_config(config).eval()


def save_mixture(family: str, folder: Path, **settings: Any) -> Path:
    """Write tokenizer and model to a folder, and return the folder."""
    mixture(family, **settings).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
