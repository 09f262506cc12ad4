"""Losses of policy gradients as pure tensor functions, one number for each token, and what they are
divided by.

With rho_t = pi(y_t) / pi_old(y_t) and an advantage A_t, which may differ from token to token:

    clipped     -min(rho A, clip(rho, 1 - low, 1 + high) A)      PPO (arXiv 1707.06347, eq. 7)
    cispo       -stop_gradient(min(rho, cap)) A log pi(y_t)      MiniMax-M1 (arXiv 2506.13585)

`high` above `low` is DAPO's clip-higher (arXiv 2503.14476). `delta` also bounds rho where A < 0,
which PPO leaves open (INTELLECT-2, arXiv 2505.07291). With one ratio for a whole response
(`sequence`), rho is the geometric mean of its tokens' (GSPO, arXiv 2507.18071, eq. 7).

What the sum over tokens is divided by has made names of its own:

    grpo        mean over a response's tokens, then over responses   (arXiv 2402.03300)
    bnpo        tokens of the micro-batch
    dr_grpo     responses times the longest length allowed           (arXiv 2503.20783)
    dapo        tokens of the whole step                             (arXiv 2503.14476)
    cispo       as `dapo`

`bnpo` alone depends on how a step is split into micro-batches; with one it equals `dapo`.

Legend: B responses, T tokens. Log-probabilities are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aligner.losses.types import LARGEST_EXPONENT

PolicyLoss = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo"]
RatioLevel = Literal["token", "sequence"]
KlEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, slots=True)
class Clip:
    """How far a ratio counts: from 1 - `low` to 1 + `high`; `delta` bounds it for negative
    advantages too. For `cispo`, `cap` is the largest ratio."""

    low: float = 0.2
    high: float = 0.2
    delta: float | None = None
    cap: float = 5.0


CLIP = Clip()


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """`losses` (B, T), the ratio of each token (B, T), and where clipping ended the gradient
    (B, T); with a ratio for each response, it stands at each of its tokens."""

    losses: Tensor
    ratios: Tensor
    is_clipped: Tensor


def policy_terms(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss: PolicyLoss = "grpo",
    level: RatioLevel = "token",
    clip: Clip = CLIP,
) -> PolicyTerms:
    """Return the loss of each token, not yet masked or divided.

    `logps` (B, T) carry the gradient, `old_logps` (B, T) are those of the policy that sampled;
    `advantages` are (B,) or (B, T); `mask` (B, T) is true for the response's tokens.
    """
    advantages_BT = advantages[:, None] if advantages.dim() == 1 else advantages
    exponents_BT = logps - old_logps
    if level == "sequence":
        lengths_B = mask.sum(1).clamp(min=1)
        means_B = (exponents_BT * mask).sum(1) / lengths_B
        exponents_BT = means_B[:, None].expand_as(logps)
    ratios_BT = exponents_BT.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp()
    if loss == "cispo":
        weights_BT = ratios_BT.clamp(max=clip.cap).detach()
        is_clipped = (ratios_BT > clip.cap) & (advantages_BT > 0)
        return PolicyTerms(-weights_BT * advantages_BT * logps, ratios_BT.detach(), is_clipped)
    bounded_BT = ratios_BT.clamp(1 - clip.low, 1 + clip.high)
    free_BT = ratios_BT if clip.delta is None else ratios_BT.clamp(max=clip.delta)
    losses_BT = -torch.minimum(free_BT * advantages_BT, bounded_BT * advantages_BT)
    too_low = (ratios_BT < 1 - clip.low) & (advantages_BT < 0)
    too_high = (ratios_BT > 1 + clip.high) & (advantages_BT > 0)
    return PolicyTerms(losses_BT, ratios_BT.detach(), too_low | too_high)


def divided(
    losses: Tensor,
    mask: Tensor,
    *,
    loss: PolicyLoss,
    step_rows: float,
    step_tokens: float,
    max_tokens: int,
) -> Tensor:
    """Return a micro-batch's share of a step's loss, a scalar; the shares of all micro-batches and
    ranks add up to it.

    `losses` and `mask` are (B, T). `step_rows` and `step_tokens` count the responses and their
    tokens in the whole step, over its micro-batches and ranks; `max_tokens` is the longest length
    allowed.
    """
    sums_B = (losses * mask).sum(1)
    lengths_B = mask.sum(1).clamp(min=1)
    if loss == "grpo":
        return (sums_B / lengths_B).sum() / step_rows
    if loss == "bnpo":
        return sums_B.sum() / mask.sum().clamp(min=1) * (len(losses) / step_rows)
    if loss == "dr_grpo":
        return sums_B.sum() / (step_rows * max_tokens)
    return sums_B.sum() / max(1.0, step_tokens)


def kl_terms(logps: Tensor, reference_logps: Tensor, estimator: KlEstimator) -> Tensor:
    """Return an estimate of KL(pi || pi_ref) at each token, in the shape of its inputs, in nats.

    With d = log pi - log pi_ref at a token drawn from pi: `k1` is d, unbiased, of either sign; `k2`
    is d^2 / 2, biased, and its gradient that of the divergence; `k3` is e^-d - 1 + d, unbiased and
    never negative (Schulman, "Approximating KL divergence", 2020). The gradient of `k1` has a mean
    of 0: it belongs into a reward, not into a loss.
    """
    gaps = logps - reference_logps
    if estimator == "k1":
        return gaps
    if estimator == "k2":
        return gaps.square() / 2
    return (-gaps).clamp(max=LARGEST_EXPONENT).exp() - 1 + gaps


def value_losses(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None = None
) -> Tensor:
    """Return 1/2 max((V - R)^2, (V_old + clip(V - V_old) - R)^2) at each token, in the shape of its
    inputs.

    `clip` is how far a value may move from the one at sampling; None: not bounded.
    """
    squares = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        squares = torch.maximum(squares, (near - returns).square())
    return squares / 2


def truncated_weights(trainer_logps: Tensor, engine_logps: Tensor, cap: float) -> Tensor:
    """Return min(pi_trainer / pi_engine, cap) at each token, in the shape of its inputs, without
    gradient: what a loss is weighted with when another engine than the trainer has sampled."""
    gaps = (trainer_logps - engine_logps).detach()
    return gaps.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp().clamp(max=cap)
