"""Small random models of many families, made from their config classes, and a folder to train each
of them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aligner.models.load_errors import MODEL_ERRORS
from aligner.models.twin import small_config
from aligner.toy.tokenizer import build_tokenizer

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "phi": {},
    "phi3": {},
    "gpt2": {},
    "gpt_neo": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 16},
    "gpt_bigcode": {},
    "opt": {},
    "bloom": {"hidden_size": 128},
    "mpt": {},
    "falcon": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "stablelm": {},
    "starcoder2": {},
    "cohere": {},
    "cohere2": {},
    "granite": {},
    "smollm3": {},
    "glm4": {},
    "ernie4_5": {},
    "exaone4": {},
    "helium": {},
    "nemotron": {"num_key_value_heads": 4, "head_dim": 32, "hidden_size": 128},
    "persimmon": {},
    "arcee": {},
    "apertus": {},
    "seed_oss": {},
    "biogpt": {},
    "llama4_text": {},
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "gpt_oss": {},
    "olmoe": {},
    "phimoe": {},
    "granitemoe": {},
    "deepseek_v3": {},
    "glm4_moe": {},
    "mamba": {},
    "mamba2": {},
    "falcon_mamba": {},
    "recurrent_gemma": {},
    "falcon_h1": {},
    "jamba": {"hidden_size": 64, "intermediate_size": 64},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "nemotron_h": {},
    "qwen3_next": {},
    "lfm2": {},
}
"""Model type of transformers -> what its small config says besides."""

HEAD_SIZE = 32
ROWS = 12
HELD_OUT = 4


def build(kind: str, folder: Path) -> Path:
    """Write a model of a family with the toy world's tokenizer, rows and held-out rows; return the
    folder."""
    tokenizer = build_tokenizer()
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    config = AutoConfig.for_model(kind)
    ids = {name: getattr(tokenizer, name) for name in names if hasattr(config, name)}
    model = _model(small_config(config, vocab_size=len(tokenizer), **ids, **FAMILIES[kind]))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [json.dumps({"messages": _talk(number)}) + "\n" for number in range(ROWS + HELD_OUT)]
    (folder / "rows.jsonl").write_text("".join(rows[:ROWS]))
    (folder / "held_out.jsonl").write_text("".join(rows[ROWS:]))
    return folder


def _model(config: Any) -> Any:
    """A random model, with heads of `HEAD_SIZE` where the family goes along with that."""
    heads, narrow = getattr(config, "num_attention_heads", None), {}
    if isinstance(heads, int) and not any("expand" in name for name in config.to_dict()):
        narrow = {
            "hidden_size": heads * HEAD_SIZE,
            "head_dim": HEAD_SIZE,
            "intermediate_size": 2 * HEAD_SIZE,
        }
    for settings in ({name: value for name, value in narrow.items() if hasattr(config, name)}, {}):
        torch.manual_seed(0)
        try:
            model = AutoModelForCausalLM.from_config(
                type(config).from_dict({**config.to_dict(), **settings})
            )
            model(torch.ones(1, 3, dtype=torch.long), use_cache=False)
        except MODEL_ERRORS:
            if not settings:
                raise
        else:
            return model
    raise AssertionError("the last settings are returned or raise")


def _talk(number: int) -> list[dict[str, str]]:
    word = "".join(chr(ord("a") + (7 * number + 3 * i) % 26) for i in range(2 + 5 * number % 11))
    answer = "".join(sorted(word))
    return [{"role": "user", "content": f"sort: {word}"}, {"role": "assistant", "content": answer}]
