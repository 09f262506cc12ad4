"""The fused head gives what full logits give, and projects the positions that are read alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, tiny_llama
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma2Config, Gemma2ForCausalLM

from aligner.models.fused_head import fuse_head

IGNORED = -100


def gemma_with_capped_logits() -> Any:
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return Gemma2ForCausalLM(config)


def llama() -> Any:
    return tiny_llama(byte_tokenizer(), initializer_range=0.3)


def llama_with_adapters() -> Any:
    torch.manual_seed(1)
    return get_peft_model(llama(), LoraConfig(target_modules="all-linear", init_lora_weights=False))


MODELS = {"llama": llama, "gemma2": gemma_with_capped_logits, "lora": llama_with_adapters}


def batch(seed: int = 0, rows: int = 3, width: int = 9) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 250, (rows, width), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    trained = torch.rand((rows, width), generator=generator) > 0.5
    labels = ids.masked_fill(~trained | (mask == 0), IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def from_logits(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each number from whole logits, one position at a time."""
    logits = model(**{key: given[key] for key in ("input_ids", "attention_mask")}).logits
    labels = given["labels"]
    shape = (labels.shape[0], labels.shape[1] - 1)
    found = {name: torch.zeros(shape) for name in ("log_probs", "entropy", "is_top1")}
    for row in range(shape[0]):
        for place in range(shape[1]):
            target = labels[row, place + 1]
            if target == IGNORED:
                continue
            logps = logits[row, place].log_softmax(-1)
            found["log_probs"][row, place] = logps[target]
            found["entropy"][row, place] = -(logps.exp() * logps).sum()
            found["is_top1"][row, place] = float(logps.argmax() == target)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_numbers_and_gradients_are_those_of_whole_logits(name: str) -> None:
    given, model = batch(), MODELS[name]()
    expected = from_logits(model, given)
    expected["log_probs"].sum().backward()
    gradients = {key: w.grad.clone() for key, w in model.named_parameters() if w.grad is not None}
    model.zero_grad()
    fuse_head(model, with_metrics=True)
    outputs = model(**given, fused_lm_head=True)
    outputs.log_probs.sum().backward()
    for key, values in expected.items():
        torch.testing.assert_close(getattr(outputs, key).float(), values, atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs.label_mask, given["labels"][:, 1:] != IGNORED)
    for key, weight in model.named_parameters():
        if key in gradients:
            torch.testing.assert_close(weight.grad, gradients[key], atol=1e-5, rtol=1e-5)


def test_places_and_targets_in_place_of_labels() -> None:
    given, model = batch(), llama()
    expected = from_logits(model, given)["log_probs"]
    labels = given.pop("labels")
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    fuse_head(model)
    outputs = model(
        **given,
        read_from=rows * labels.shape[1] + columns,
        targets=labels[rows, columns + 1],
        fused_lm_head=True,
    )
    torch.testing.assert_close(outputs.log_probs, expected[rows, columns], atol=1e-5, rtol=1e-5)


def test_without_metrics_their_fields_are_zeros_and_they_can_be_asked_for_again() -> None:
    given, model = batch(), llama()
    head = fuse_head(model, with_metrics=True)
    head.with_metrics = False
    lean = model(**given, fused_lm_head=True)
    assert not lean.entropy.any()
    assert not lean.is_top1.any()
    head.with_metrics = True
    full = model(**given, fused_lm_head=True)
    assert full.entropy.any()
    assert torch.equal(full.log_probs, lean.log_probs)


def test_a_batch_that_trains_nothing_gives_zeros_with_a_graph() -> None:
    given, model = batch(), llama()
    given["labels"].fill_(IGNORED)
    fuse_head(model)
    outputs = model(**given, fused_lm_head=True)
    outputs.log_probs.sum().backward()
    assert outputs.log_probs.shape == (3, 8)
    assert not outputs.log_probs.any()
    assert not model.model.embed_tokens.weight.grad.any()


def test_the_head_projects_trained_positions_alone() -> None:
    given, model = batch(), llama()
    vocabulary, width = model.lm_head.weight.shape
    fuse_head(model)
    trained = int((given["labels"][:, 1:] != IGNORED).sum())
    spent = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**given, fused_lm_head=True)
        spent.append(counter.get_total_flops())
        given["labels"].fill_(IGNORED)  # the second time one place is read, to have a graph
    assert spent[0] - spent[1] == 2 * vocabulary * width * (trained - 1)


def test_the_models_own_forward_and_its_signature_stay() -> None:
    given, model = batch(), llama()
    before = model(**given)
    fuse_head(model, with_metrics=True)
    after = model(**given)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
    written = model.generate(given["input_ids"][:1], max_new_tokens=2, do_sample=False)
    assert written.shape == (1, 11)
