"""What layers keep for their backward pass, against what autograd saves of real ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aligner.config.recipe import Lora, Model
from aligner.memory.activations import decoder_of
from aligner.memory.footprint import Batch, Mask
from aligner.memory.numbers import Numbers
from aligner.memory.shape import shape_of

ROWS, TOKENS = 2, 48
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "vocab_size": 99}
SIZES |= {"max_position_embeddings": 128}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
SIZES |= {"ffn_dim": 160, "n_inner": 160, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "dropout": 0.0}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN = Numbers(4, 4, 4, 4, autocast=False, on_cuda=False)
MIXED = Numbers(4, 4, 2, 4, autocast=True, on_cuda=False)
HALF = Numbers(2, 2, 2, 2, autocast=False, on_cuda=False)


def config_of(family: str, layers: int) -> Any:
    more = {} if family in ("gpt2", "opt") else GROUPED
    return AutoConfig.for_model(family, **SIZES, **more, num_hidden_layers=layers)


def saved_bytes(model: Any, mask: torch.Tensor | None, autocast: bool) -> int:
    """Bytes that autograd holds for the backward pass, without weights; copies of these that
    autocast makes count as weights."""
    held: dict[int, int] = {}
    weights = {weight.data_ptr() for weight in model.parameters()}
    shapes = {weight.shape for weight in model.parameters()}
    shapes |= {weight.T.shape for weight in model.parameters() if weight.dim() == 2}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights and tensor.shape not in shapes:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(3, 99, (ROWS, TOKENS))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        kept = states.last_hidden_state  # what is held lives until here
    assert kept.requires_grad
    return sum(held.values())


def a_layer(family: str, lora: Lora | None, numbers: Numbers, mask: torch.Tensor | None) -> int:
    """What one more layer adds."""
    found = []
    for layers in (2, 3):
        config = config_of(family, layers)
        torch.manual_seed(0)
        dtype = torch.float32 if numbers.weights == 4 else torch.bfloat16
        model = AutoModelForCausalLM.from_config(config).to(dtype).train()
        if lora is not None:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=lora.r, target_modules="all-linear"))
            model.enable_input_require_grads()
            model = model.get_base_model()
        found.append(saved_bytes(model, mask, numbers.autocast))
    return found[1] - found[0]


CASES = [
    ("llama", None, PLAIN, ""),
    ("llama", None, PLAIN, "padding"),
    ("llama", None, MIXED, ""),
    ("llama", None, HALF, ""),
    ("llama", Lora(r=4), PLAIN, ""),
    ("llama", Lora(r=4), PLAIN, "padding"),
    ("llama", Lora(r=4), MIXED, ""),
    ("llama", Lora(r=4), Numbers(2, 4, 2, 2, autocast=True, on_cuda=False), ""),
    ("qwen3", None, PLAIN, ""),
    ("gemma2", None, PLAIN, ""),
    ("gpt2", None, PLAIN, ""),
    ("opt", None, PLAIN, ""),
]


@pytest.mark.parametrize(("family", "lora", "numbers", "mask"), CASES)
def test_a_layer_keeps_what_autograd_saves(
    family: str, lora: Lora | None, numbers: Numbers, mask: Mask
) -> None:
    given = None
    if mask:
        given = torch.ones(ROWS, TOKENS, dtype=torch.long)
        given[0, -9:] = 0
    config = config_of(family, 2)
    attention = "eager" if family == "gemma2" else "sdpa"
    decoder = decoder_of(
        shape_of(config.to_dict()),
        numbers,
        Model(name_or_path="x", lora=lora, attn_implementation=attention),
    )
    counted = decoder.layer(Batch(ROWS, TOKENS, ROWS * TOKENS, mask))
    assert counted == pytest.approx(a_layer(family, lora, numbers, given), rel=0.05)
