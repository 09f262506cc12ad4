"""Whether answers share their prompts is proved on rows that can show it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM, MistralConfig

from aligner.training.prefix import why_not

PROMPT = [5, 6, 7, 8]
TELLS_NOTHING: dict[str, Any] = {
    "one answer twice": [[*PROMPT, 9, 10], [*PROMPT, 9, 10]],
    "one is the beginning of the other": [[*PROMPT, 9], [*PROMPT, 9, 10]],
}


def windowed() -> Any:
    config = MistralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", TELLS_NOTHING)
def test_rows_that_could_not_show_a_leak_neither_allow_nor_refuse(name: str) -> None:
    groups = [TELLS_NOTHING[name]]
    assert why_not(tiny_llama(byte_tokenizer(), initializer_range=0.3), groups) == ""
    assert "4 tokens back" in why_not(windowed(), groups)


def test_a_leak_is_found_where_rows_could_not_show_it() -> None:
    model = tiny_llama(byte_tokenizer(), initializer_range=0.3)
    own = model.model.forward

    def unmasked(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    model.model.forward = unmasked
    assert "see each other" in why_not(model, [TELLS_NOTHING["one answer twice"]])
