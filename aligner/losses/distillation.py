"""Reward distillation: the policy's implicit reward follows explicit ones (arXiv 2405.19316).

A pair's target is the difference of the rewards of its two answers, and the loss is the squared
distance of z from it. Targets are finite, so nothing drives margins to infinity, and a pair needs
no label: with its sides swapped, target and z both change their sign. With enough support the
minimizer is the optimum of the KL-regularized problem, pi(y|x) ~ pi_ref(y|x) exp(r(x, y) / beta).

A family of K reward models is combined by `distillation_targets`: their mean, or, pessimistically,
the one whose mean loss over the batch is smallest. The pessimistic policy of the paper is, among
those that are optimal for some member, the nearest to the reference; that is where the minimum over
members leads together with a forward KL term, which is the trainer's.

Legend: B pairs, K reward models.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aligner.losses.types import PairLogps, Settings

Combine = Literal["mean", "min"]


def reward_distill(pairs: PairLogps, settings: Settings) -> Tensor:
    """Distilled DPO: (r(y_w) - r(y_l) - z)^2, where the difference of rewards is `pairs.target`
    (arXiv 2405.19316)."""
    assert pairs.target is not None, "reward_distill needs a target for each pair"
    return (pairs.target.float() - settings.beta * pairs.rho) ** 2


def distillation_targets(
    pairs: PairLogps, gaps_BK: Tensor, weights_B: Tensor, settings: Settings, combine: Combine
) -> tuple[Tensor, Tensor | None]:
    """Return the targets (B,) that K reward models give, and, for `min`, the number of the member
    that is followed.

    `min` takes the member with the smallest mean loss, weighted by the pairs' weights, over the
    micro-batch of all processes, and never one for each pair. No gradient flows through the choice.
    """
    if combine == "mean":
        return gaps_BK.mean(dim=1), None
    with torch.no_grad():
        errors_BK = (gaps_BK - settings.beta * pairs.rho[:, None]) ** 2
        weights = pairs.over_batch(weights_B)[:, None]
        member = ((weights * pairs.over_batch(errors_BK)).sum(dim=0) / weights.sum()).argmin()
    return gaps_BK.index_select(1, member[None]).squeeze(1), member
