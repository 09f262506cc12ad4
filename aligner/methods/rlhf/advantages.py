"""Advantages: how much better each token's choice was than expected, from rewards of tokens,
segments or responses.

With a critic: generalized advantage estimation (arXiv 1506.02438, eq. 16), whitened over all tokens
of all ranks. Without one, from the other responses to the same prompt, which stand next to each
other in groups of G:

    group             (R_i - mean) / std of the group                        GRPO, arXiv 2402.03300
    leave_one_out     R_i - mean of the others                               RLOO, arXiv 2402.14740
    location          G_i(t) - mean over the others of G_j at the location of t
    process           sum of the segments' z-scores from t's segment on, over K
                                                            GRPO with process rewards, section 4.1.3
    mixed             A_i + alpha (r_i,seg(t) - mean over the tokens of i)

G_i(t) is the sum of response i's token rewards from t on. The location of a token is how many
segments lie before it, as a share of all, so that responses of different lengths are compared at
like places; the group itself plays the critic, and in GAE too where lambda is below 1. In `mixed` a
verified outcome decides which response wins, and segments only move credit within it: their part
adds up to 0 over its tokens.

Legend: N responses, B rows, T tokens, S segments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from aligner.methods.rlhf.segment_rewards import SegmentMap

Scale = Literal["group", "batch", "none"]
Baseline = Literal["mean", "leave_one_out"]

EPSILON = 1e-4
"""Added to a standard deviation that is divided by, as in TRL."""

Add = Callable[[Tensor], Tensor]
"""Adds a tensor up over all ranks."""


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns (B, T), 0 where `mask` is.

    `rewards`, `values` and `mask` are (B, T), responses on the left, a value read before its token.
    `bootstrap` (B,) is the value behind the last token: 0 where a response has ended, which is also
    what is taken without it.
    """
    following = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap.to(values)
    running = torch.zeros_like(following)
    found = torch.zeros_like(values)
    for place in reversed(range(values.shape[1])):
        here = mask[:, place].bool()
        delta = rewards[:, place] + gamma * following - values[:, place]
        running = torch.where(here, delta + gamma * lam * running, running)
        following = torch.where(here, values[:, place], following)
        found[:, place] = torch.where(here, running, torch.zeros_like(running))
    return found, torch.where(mask.bool(), found + values, torch.zeros_like(values))


def whiten(values: Tensor, mask: Tensor, add: Add | None = None) -> Tensor:
    """Return `values` (B, T) with a mean of 0 and a standard deviation of 1 over all tokens of
    `mask` (B, T), those of all ranks with `add`; 0 elsewhere."""
    add = add or (lambda sums: sums)
    there = mask.bool()
    kept = values.double().masked_fill(~there, 0.0)
    count, total = add(torch.stack([there.sum().double(), kept.sum()]))
    mean = total / count.clamp(min=1)
    off = (kept - mean).masked_fill(~there, 0.0)
    spread = (add(off.square().sum()) / (count - 1).clamp(min=1)).sqrt()
    return (off / spread.clamp(min=1e-8)).to(values.dtype)


def explained_variance(returns: Tensor, values: Tensor, add: Add | None = None) -> float | None:
    """Return 1 - Var(returns - values) / Var(returns) over tokens (N,), those of all ranks with
    `add`; None where the returns are all the same."""
    add = add or (lambda sums: sums)
    pairs = torch.stack([returns, returns - values]).double()
    count = add(torch.tensor([pairs.shape[1]], dtype=torch.float64, device=pairs.device))
    means = add(pairs.sum(1)) / count.clamp(min=1)
    whole, left = add((pairs - means[:, None]).square().sum(1)).tolist()
    return 1 - left / whole if whole > 0 else None


def returns_to_go(rewards: Tensor) -> Tensor:
    """Return the sum of `rewards` (B, T) from each token on, (B, T)."""
    return rewards.flip(1).cumsum(1).flip(1)


def outcome_advantages(
    scores: Tensor, group: int, *, baseline: Baseline = "mean", scale: Scale = "group"
) -> Tensor:
    """Return the advantage of each response (N,) over those of its group, from scores (N,).

    `scale` divides by the standard deviation (with N - 1) of the group, of all scores, or not at
    all, as Dr. GRPO asks (arXiv 2503.20783).
    """
    grouped = scores.view(-1, group)
    means = grouped.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        assert group > 1, "the mean of the others needs others"
        means = (grouped.sum(1, keepdim=True) - grouped) / (group - 1)
    found = (grouped - means).flatten()
    if scale == "none":
        return found
    spread = grouped.std(1).repeat_interleave(group) if scale == "group" else scores.std()
    return found / (spread + EPSILON)


def location_advantages(
    rewards: Tensor, segments: SegmentMap, group: int, *, lam: float = 1.0
) -> Tensor:
    """Return G_i(t) less the mean of the other responses' returns at t's location, (N, T).

    `rewards` (N, T) are of tokens. A location is a fraction of a segment too: half through the
    second of four segments is 3/8. Between the locations of its tokens a response's return is taken
    as a line, down to 0 at 1, where tokens of no segment stand, such as the end token.

    With `lam` below 1 it is GAE with that mean as the critic: what lies k tokens ahead counts
    lam^k of how far it is from what the others got there.
    """
    assert group > 1, "the mean of the others needs others"
    returns, expected = returns_to_go(rewards), torch.zeros_like(rewards)
    places_NT = token_locations(segments).to(rewards)
    for first in range(0, len(rewards), group):
        rows = slice(first, first + group)
        places_GT = places_NT[rows]
        read = _read(places_GT, returns[rows], places_GT.flatten().repeat(group, 1))
        read_GGT = read.view(group, *places_GT.shape)
        own_GT = read_GGT.diagonal(dim1=0, dim2=1).T
        expected[rows] = (read_GGT.sum(0) - own_GT) / (group - 1)
    if lam == 1.0:
        return returns - expected
    return gae(rewards, expected, torch.ones_like(segments.body), lam=lam)[0]


def token_locations(segments: SegmentMap) -> Tensor:
    """Return the location of each token before it is chosen, in [0, 1] (N, T); 1 for a token of no
    segment."""
    tokens = segments.sums(segments.body.float())
    before = segments.spread(tokens.cumsum(1) - tokens)
    inside = (segments.body.cumsum(1) - 1 - before) / segments.lengths
    shares = (segments.numbers + inside) / segments.counts.clamp(min=1)[:, None]
    return torch.where(segments.body, shares, torch.ones_like(shares))


def _read(x: Tensor, y: Tensor, places: Tensor) -> Tensor:
    """Read each row's line through the points `x`, `y` (M, T), x ascending, and (1, 0), at its
    `places` (M, P); the first point counts where several have the same x."""
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).contiguous()
    y = torch.cat([y, torch.zeros_like(y[:, :1])], dim=1)
    high = torch.searchsorted(x, places).clamp(1, x.shape[1] - 1)
    left, right = x.gather(1, high - 1), x.gather(1, high)
    share = (places - left) / (right - left).clamp(min=1e-12)
    return torch.lerp(y.gather(1, high - 1), y.gather(1, high), share.clamp(0.0, 1.0))


def process_advantages(values: Tensor, segments: SegmentMap, group: int) -> Tensor:
    """Return the sum of z-scores from each token's segment on, divided by the number of segments K,
    (N, T); 0 for tokens of no segment.

    `values` (N, S) are of segments, 0 behind the last; the z-scores are over all segments of a
    group. The paper does not divide by K, so that there longer responses weigh more.
    """
    there = torch.arange(values.shape[1], device=values.device) < segments.counts[:, None]
    weights = there.to(values).view(-1, group, values.shape[1])
    grouped = values.view_as(weights)
    count = weights.sum((1, 2), keepdim=True).clamp(min=1)
    off = (grouped - (grouped * weights).sum((1, 2), keepdim=True) / count) * weights
    spread = (off.square().sum((1, 2), keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    scores = (off / (spread + EPSILON)).view_as(values)
    return segments.spread(returns_to_go(scores) / segments.counts.clamp(min=1)[:, None])


def mixed_advantages(
    outcomes: Tensor, values: Tensor, segments: SegmentMap, mask: Tensor, alpha: float
) -> Tensor:
    """Return A_i + alpha (r_i,seg(t) - mean_i) at each token of `mask` (N, T), 0 elsewhere.

    `outcomes` (N,) are the responses' advantages, `values` (N, S) the segments' rewards, mean_i
    their mean over the tokens of response i that belong to a segment.
    """
    spread = segments.spread(values)
    tokens = segments.body.sum(1, keepdim=True).clamp(min=1)
    moved = (spread - spread.sum(1, keepdim=True) / tokens).masked_fill(~segments.body, 0.0)
    return (outcomes[:, None] + alpha * moved).masked_fill(~mask.bool(), 0.0)
