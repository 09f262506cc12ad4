"""Losses of reward models against numbers worked out by hand, and their twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from aligner.losses.reward import (
    correlation,
    length_term,
    orthogonality,
    pair_losses,
    rating_losses,
)

CHOSEN, REJECTED = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 2.0])


def values(tensor: Tensor) -> list[float]:
    return [round(value, 4) for value in tensor.tolist()]


def test_the_plain_loss_is_minus_log_sigmoid_of_the_difference() -> None:
    # ln(1 + e^-1) = 0.3133, ln 2 = 0.6931, ln(1 + e^3) = 3.0486
    assert values(pair_losses(CHOSEN, REJECTED)) == [0.3133, 0.6931, 3.0486]


def test_a_margin_is_asked_for_on_top() -> None:
    # differences 1, 0, -3 less 1, 2, 3: ln 2, ln(1 + e^2) = 2.1269, ln(1 + e^6) = 6.0025
    found = pair_losses(CHOSEN, REJECTED, torch.tensor([1.0, 2.0, 3.0]), loss="margin")
    assert values(found) == [0.6931, 2.1269, 6.0025]


def test_smoothing_takes_a_share_of_the_labels_to_be_flipped() -> None:
    # 0.9 * 0.3133 + 0.1 * ln(1 + e^1) = 0.4133; at a difference of 0 nothing changes
    assert values(pair_losses(CHOSEN, REJECTED, label_smoothing=0.1))[:2] == [0.4133, 0.6931]


def test_centring_pulls_the_sum_of_a_pair_to_zero_and_leaves_its_difference() -> None:
    assert values(pair_losses(CHOSEN, REJECTED, center=0.01)) == [0.3133 + 0.09, 0.6931, 3.0586]
    assert values(pair_losses(CHOSEN - 1.5, REJECTED - 1.5, center=0.01))[0] == 0.3133


def test_scaling_by_strength_is_repeating_a_pair_as_often() -> None:
    strengths = torch.tensor([1.0, 3.0, 2.0])
    losses = pair_losses(CHOSEN, REJECTED, strengths, loss="scaled")
    repeated = pair_losses(
        CHOSEN.repeat_interleave(strengths.long()), REJECTED.repeat_interleave(strengths.long())
    )
    assert (strengths * losses).sum() / strengths.sum() == pytest.approx(repeated.mean().item())


def test_a_missing_rating_counts_for_nothing_and_gives_no_gradient() -> None:
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [5.0, 5.0]], requires_grad=True)
    ratings = torch.tensor([[2.0, 4.0], [1.0, math.nan], [math.nan, math.nan]])
    losses = rating_losses(outputs, ratings)
    assert values(losses) == [(1 + 4) / 2, 4.0, 0.0]
    losses.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[-1.0, -2.0], [4.0, 0.0], [0.0, 0.0]]


def test_correlation_is_pearsons_and_zero_without_variation() -> None:
    a, b = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 1.0, 0.0])
    assert correlation(a, b).item() == pytest.approx(
        torch.corrcoef(torch.stack([a, b]))[0, 1].item(), abs=1e-6
    )
    flat = torch.zeros(3, requires_grad=True)
    found = correlation(flat, b)
    found.backward()
    assert found.item() == 0.0
    assert torch.isfinite(flat.grad).all()  # type: ignore[arg-type]


def test_the_length_term_is_least_when_one_head_is_the_length_and_the_other_ignores_it() -> None:
    tokens = torch.tensor([1.0, 2.0, 3.0, 4.0])
    without = torch.tensor([1.0, -1.0, -1.0, 1.0])
    assert length_term(without, tokens, tokens).item() == pytest.approx(-1.0)
    assert length_term(tokens, -tokens, tokens).item() == pytest.approx(2.0)
    assert length_term(-tokens, tokens, tokens).item() == pytest.approx(0.0, abs=1e-6)


def test_orthogonality_is_the_cosine_without_its_sign() -> None:
    assert orthogonality(torch.tensor([[1.0, 0.0], [0.0, 5.0]])).item() == 0.0
    assert orthogonality(torch.tensor([[1.0, 0.0], [-3.0, 3.0]])).item() == pytest.approx(2**-0.5)
