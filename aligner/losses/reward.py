"""Losses of reward models as pure tensor functions: one for each pair or answer, no mean taken.

Notation: d = r(x, y_chosen) - r(x, y_rejected), m the strength of a preference (1 slightly, 2, 3
much better).

    plain        -log s(d)             Bradley and Terry's model
    margin       -log s(d - m)         asks for a difference of at least m
                                       (Llama 2, arXiv 2307.09288)
    scaled       -log s(d), weight m   the same as repeating a pair m times
                                       (HelpSteer2-Preference, arXiv 2410.01257)

`scaled` is given by the weights of a step, which the trainer divides by their sum: so the strength
of the gradient does not grow with the mean of m, and the learning rate keeps its meaning. With
label smoothing e, a share e of the labels is taken to be flipped: (1-e) * loss(d) + e * loss(-d).

ODIN (arXiv 2402.07319) trains two heads, of quality and of length, on the sum of both, and keeps
the first; `length_term` and `orthogonality` are what it adds to the loss. Each pair is compared, as
in the paper's formula; a reimplementation by others (`odin/` of
github.com/RLHFlow/RLHF-Reward-Modeling) ranks the *sum over the batch* of chosen minus rejected
scores, which is one comparison a batch, and leaves the orthogonality out.

Legend: B pairs, N answers, K outputs, D hidden size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PairLoss = Literal["plain", "margin", "scaled"]


def pair_losses(
    chosen: Tensor,
    rejected: Tensor,
    strengths: Tensor | None = None,
    *,
    loss: PairLoss = "plain",
    label_smoothing: float = 0.0,
    center: float = 0.0,
) -> Tensor:
    """Return the loss of each pair (B,), in nats, from rewards (B,); `strengths` (B,) are read by
    `margin` alone.

    `center` adds center * (r_chosen + r_rejected)^2, which fixes the level of rewards at 0 and
    changes no comparison (TRL's `center_rewards_coefficient`; Eisenstein et al., arXiv 2312.09244).
    """
    gap = chosen - rejected
    shift = torch.zeros_like(gap)
    if loss == "margin":
        assert strengths is not None, "margins come from the rows"
        shift = strengths
    losses = -logsigmoid(gap - shift)
    if label_smoothing:
        losses = (1.0 - label_smoothing) * losses - label_smoothing * logsigmoid(-gap - shift)
    return losses + center * (chosen + rejected) ** 2 if center else losses


def rating_losses(outputs: Tensor, ratings: Tensor) -> Tensor:
    """Return the mean squared error of each answer (N,) over the attributes that it has a rating
    for.

    `outputs` and `ratings` (N, K); a rating that is NaN is not known and counts for nothing. An
    answer without any has a loss of 0.
    """
    known = ~ratings.isnan()
    squares = torch.where(known, outputs - torch.nan_to_num(ratings), 0.0) ** 2
    return squares.sum(-1) / known.sum(-1).clamp(min=1)


def length_term(quality: Tensor, length: Tensor, tokens: Tensor) -> Tensor:
    """Return |rho(quality, L)| - rho(length, L), a scalar in [-1, 2], with Pearson's correlation
    rho.

    `quality`, `length` and `tokens` (N,): both heads' outputs and the answers' lengths, over the
    batch of all ranks.
    """
    return correlation(quality, tokens).abs() - correlation(length, tokens)


def orthogonality(heads: Tensor) -> Tensor:
    """Return |<w_Q, w_L>| / (|w_Q| |w_L|) of the two heads (2, D), a scalar in [0, 1]."""
    first, second = heads.float()
    return (first @ second).abs() / (first.norm() * second.norm()).clamp(min=1e-12)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of two sets of numbers (N,), a scalar; 0, with no gradient,
    where one does not vary."""
    first, second = (values.float() - values.float().mean() for values in (first, second))
    return (first * second).sum() / (first.norm() * second.norm()).clamp(min=1e-12)
