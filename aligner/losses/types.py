"""The inputs of an objective, and helpers that keep its numbers finite.

Legend: B pairs. rho = (log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) - log pi_ref(y_l|x)), z
= beta * rho, where y_w is the chosen and y_l the rejected answer, and log-probabilities are summed
over the answer's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_EXPONENT = 20.0
"""Beyond e^20 the exponential loss continues as its tangent, so that neither it nor its gradient
overflows."""


@dataclass(frozen=True, slots=True)
class PairLogps:
    """What an objective sees of B pairs; every tensor has shape (B,).

    Log-probabilities are sums over the answer's tokens, in nats; lengths are numbers of answer
    tokens. `gather`, where several processes train, turns the values (B,) of this one into those of
    all pairs of the micro-batch on all of them, and lets gradients back; without it a batch is this
    process's own. `target`, where rewards are distilled, is what z is to become.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    gather: Callable[[Tensor], Tensor] | None = None
    target: Tensor | None = None

    @property
    def chosen_ratio(self) -> Tensor:
        """log pi(y_w|x) - log pi_ref(y_w|x), shape (B,), float32."""
        return self.chosen.float() - self.reference_chosen.float()

    @property
    def rejected_ratio(self) -> Tensor:
        """log pi(y_l|x) - log pi_ref(y_l|x), shape (B,), float32."""
        return self.rejected.float() - self.reference_rejected.float()

    @property
    def rho(self) -> Tensor:
        """Difference of the two ratios, shape (B,), float32."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_rho(self) -> Tensor:
        """Difference of the two ratios, each divided by its answer's length, shape (B,),
        float32."""
        return per_token(self.chosen_ratio, self.chosen_lengths) - per_token(
            self.rejected_ratio, self.rejected_lengths
        )

    @property
    def chosen_mean(self) -> Tensor:
        """log pi(y_w|x) per token, shape (B,), float32."""
        return per_token(self.chosen.float(), self.chosen_lengths)

    @property
    def rejected_mean(self) -> Tensor:
        """log pi(y_l|x) per token, shape (B,), float32."""
        return per_token(self.rejected.float(), self.rejected_lengths)

    def over_batch(self, values: Tensor) -> Tensor:
        """Return the values (N,) over which a batch statistic is taken: all pairs of the
        micro-batch, of all processes."""
        return values if self.gather is None else self.gather(values)


@dataclass(frozen=True, slots=True)
class Settings:
    """Numbers that objectives share; each uses those that its formula names."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    tau: float = 0.05
    simpo_gamma: float = 0.5


Objective = Callable[[PairLogps, Settings], Tensor]
"""Losses (B,) of B pairs, in float32."""


def per_token(values: Tensor, lengths: Tensor) -> Tensor:
    """Divide sums over tokens (B,) by the numbers of tokens (B,); an answer without tokens counts
    as one of one."""
    return values / lengths.clamp(min=1)


def bounded_exp(exponent: Tensor) -> Tensor:
    """e^x up to `LARGEST_EXPONENT`, and beyond it the tangent there: the same slope for ever, never
    infinite."""
    return torch.exp(exponent.clamp(max=LARGEST_EXPONENT)) * (
        1 + torch.relu(exponent - LARGEST_EXPONENT)
    )


def variance(values: Tensor) -> Tensor:
    """Unbiased variance of values (N,), a scalar; 0 for a single value, of which torch's would be
    NaN."""
    return values.var() if values.numel() > 1 else values.sum() * 0.0


def deviation(values: Tensor) -> Tensor:
    """Square root of `variance`, with a gradient of 0 where all values are equal (as at the first
    step)."""
    return values.std() if values.numel() > 1 else values.sum() * 0.0
