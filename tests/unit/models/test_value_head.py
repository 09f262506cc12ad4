"""A critic: which token its values are read before, and what it shares with its policy."""

from __future__ import annotations

from pathlib import Path

import torch
from fakes import byte_tokenizer, tiny_llama
from peft import LoraConfig, get_peft_model

from aligner.models.answers import stack_answers
from aligner.models.ema import trained_weights
from aligner.models.value_head import Critic

GROUPS = [
    [([5, 6, 7], [8, 9]), ([5, 6, 7], [10, 11, 12, 13])],
    [([20, 21], [22]), ([20, 21], [23, 24, 25])],
]
"""Two answers to each of two prompts."""


def critic() -> Critic:
    return Critic(tiny_llama(byte_tokenizer()), seed=0).eval()


def test_a_value_knows_what_stands_before_its_token_and_no_more() -> None:
    model = critic()
    one = model(stack_answers([[([5, 6, 7], [8, 9, 10])]], 0))
    other = model(stack_answers([[([5, 6, 7], [8, 30, 31])]], 0))
    assert one.shape == (1, 3)
    assert one[0, :2].equal(other[0, :2])
    assert one[0, 2] != other[0, 2]
    hidden = model.backbone(torch.tensor([[5, 6, 7, 8, 9, 10]])).last_hidden_state
    torch.testing.assert_close(one[0], model.value(hidden[0, 2:5])[:, 0])


def test_values_do_not_depend_on_how_answers_are_laid_out() -> None:
    model = critic()
    apart = model(stack_answers(GROUPS, 0, "separate"))
    shared = model(stack_answers(GROUPS, 0, "shared"))
    assert apart.shape == (4, 4)
    torch.testing.assert_close(apart, shared)
    assert apart[0, 2:].tolist() == [0.0, 0.0]
    alone = model(stack_answers([GROUPS[1]], 0))
    torch.testing.assert_close(alone[1], apart[3, :3])


def test_adapters_are_its_own_and_the_base_is_not(tmp_path: Path) -> None:
    base = tiny_llama(byte_tokenizer())
    policy = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model = Critic(policy, seed=0)
    held = {id(weight) for weight in policy.parameters()}
    shared = [name for name, weight in model.named_parameters() if id(weight) in held]
    assert shared == [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert {name.split(".")[-1] for name in trained_weights(model)} == {"weight", "bias"}
    assert all("lora_" in name or name.startswith("value.") for name in trained_weights(model))
    model(stack_answers(GROUPS, 0)).sum().backward()
    assert all(weight.grad is None for weight in policy.parameters())
    model.save(tmp_path / "critic.safetensors")
    other = Critic(policy, seed=1)
    other.load(tmp_path / "critic.safetensors")
    for name, weight in trained_weights(other).items():
        assert weight.equal(trained_weights(model)[name]), name


def test_values_are_float32_whatever_the_layers_are() -> None:
    model = Critic(tiny_llama(byte_tokenizer()).bfloat16(), seed=0)
    assert model(stack_answers(GROUPS, 0)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(stack_answers(GROUPS, 0))
    assert not found.equal(found.bfloat16().float())


def test_the_head_follows_its_seed_alone() -> None:
    policy = tiny_llama(byte_tokenizer())
    torch.manual_seed(1)
    one = Critic(policy, seed=3).value.weight
    torch.manual_seed(2)
    assert one.equal(Critic(policy, seed=3).value.weight)
    assert not one.equal(Critic(policy, seed=4).value.weight)
    assert float(one.detach().abs().max()) < 0.2
