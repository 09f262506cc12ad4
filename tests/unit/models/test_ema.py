"""Averages of weights beside the model: how they follow, and how they are lent."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aligner.models.ema import WeightCopy, trained_weights


def model(value: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    layer = nn.Linear(2, 1, bias=True).to(dtype)
    layer.bias.requires_grad_(False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_the_decay_weighs_the_old():
    policy = model(1.0)
    shadow = WeightCopy(policy)
    nn.init.constant_(policy.weight, 2.0)
    shadow.update(policy, 0.9)
    assert shadow.weights["weight"].tolist() == [[pytest.approx(1.1)] * 2]
    shadow.update(policy, 0.9)
    assert shadow.weights["weight"].tolist() == [[pytest.approx(0.9 * 1.1 + 0.1 * 2)] * 2]
    assert shadow.distance(policy) == pytest.approx((2 - 1.19) / 2)


def test_only_what_is_trained_is_held():
    assert list(WeightCopy(model(1.0)).weights) == ["weight"]


def test_small_steps_are_not_lost_where_the_policy_is_bfloat16():
    policy = model(1.0, torch.bfloat16)
    shadow = WeightCopy(policy)
    nn.init.constant_(policy.weight, 1.0078125)  # the next number in bfloat16
    for _ in range(50):
        shadow.update(policy, 0.99)
    assert shadow.weights["weight"].dtype is torch.float32
    assert shadow.weights["weight"][0, 0].item() == pytest.approx(
        1 + 0.0078125 * (1 - 0.99**50), rel=1e-5
    )


def test_a_model_works_with_a_shadow_and_has_its_own_weights_back_after():
    policy = model(1.0)
    shadow = WeightCopy(policy)
    nn.init.constant_(policy.weight, 3.0)
    before = policy.weight.data_ptr()
    x = torch.ones(1, 2)
    loss = policy(x).sum()
    with shadow.swapped_in(policy), torch.no_grad():
        assert policy(x).item() == pytest.approx(2 + policy.bias.item())
    assert policy.weight.data_ptr() == before
    loss.backward()
    assert policy.weight.grad.tolist() == [[1.0, 1.0]]
    with pytest.raises(ZeroDivisionError), shadow.swapped_in(policy):
        _ = 1 / 0
    assert policy.weight.data_ptr() == before


def test_a_shadow_becomes_another_and_is_read_back(tmp_path):
    shadow, other = WeightCopy(model(1.0)), WeightCopy(model(5.0))
    shadow.copy_from(other)
    assert shadow.weights["weight"].tolist() == [[5.0, 5.0]]
    shadow.copy_from(model(2.0))
    assert other.weights["weight"].tolist() == [[5.0, 5.0]], "taken over, not shared"
    shadow.save(tmp_path / "s.safetensors")
    other.load(tmp_path / "s.safetensors")
    assert other.weights["weight"].tolist() == [[2.0, 2.0]]
    assert set(trained_weights(model(0.0))) == {"weight"}
