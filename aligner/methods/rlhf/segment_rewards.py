"""From the values of a segment reward model to a reward for each token (arXiv 2501.02790, section
3.3).

A response's segments j = 1..K have values r_j, read behind their last tokens. A normalizer takes
off what hangs on the location j/K alone; then each value is given to the tokens of its segment:

    even     r_j / |segment j| to each token, so that a segment's tokens add up to r_j
    last     r_j to the last token
    repeat   r_j to each token, which pays by the length (the paper's ablation)

With the aggregate `sum` that is all, as in the paper, where the reward model learns a mean over
segments and the policy is paid a sum: longer answers pay as soon as a segment is better than the
average of the fit. `mean` divides by K, and multiplies by a constant that gives the returns of the
reference's responses a standard deviation of 1, so that one KL coefficient serves segments, tokens
and whole responses.

A response that is nothing but its end token is one segment on it, as in the training of the reward
model; the paper's code gives it no segment, and reads the last token of the prompt.

Legend: B responses, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["even", "last", "repeat"]
Aggregate = Literal["mean", "sum"]

LARGEST_REWARD = 10.0
"""Size that a token's reward is clamped to, as in the paper's code."""

Normalize = Callable[[Tensor, Tensor], Tensor]
"""From locations in (0, 1] and values, of one shape, to normalized values."""


@dataclass(frozen=True, slots=True)
class SegmentMap:
    """Which token of B padded responses belongs to which segment.

    `numbers` (B, T): its segment, from 0, or -1 for a token of none (the end token, padding);
    `is_end` (B, T): the last token of a segment; `counts` (B,): the segments of a response, K.
    """

    numbers: Tensor
    is_end: Tensor
    counts: Tensor

    @classmethod
    def from_ends(
        cls, ends: Sequence[Sequence[int]], width: int, device: torch.device | str = "cpu"
    ) -> SegmentMap:
        """Map responses whose segments end at these places, ascending, in rows of `width`
        tokens."""
        is_end = torch.zeros((len(ends), width), dtype=torch.bool)
        for row, places in zip(is_end, ends):
            row[list(places)] = True
        is_end = is_end.to(device)
        before = is_end.cumsum(1) - is_end.long()
        counts = is_end.sum(1)
        return cls(before.masked_fill(before >= counts[:, None], -1), is_end, counts)

    @property
    def body(self) -> Tensor:
        """Whether a token belongs to a segment (B, T)."""
        return self.numbers >= 0

    @property
    def locations(self) -> Tensor:
        """j/K of each token's segment, in (0, 1] (B, T); 1 for a token of none."""
        found = (self.numbers + 1) / self.counts.clamp(min=1)[:, None]
        return torch.where(self.body, found, torch.ones_like(found))

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each token's segment (B, T); 1 for a token of none."""
        return self.spread(self.sums(self.body.float()), 1.0)

    def sums(self, values: Tensor) -> Tensor:
        """Add up `values` (B, T) over the tokens of each segment: (B, S), S the most segments."""
        width = max(1, int(self.counts.max())) if len(self.counts) else 1
        sums = values.new_zeros(len(values), width)
        kept = torch.where(self.body, values, torch.zeros_like(values))
        return sums.scatter_add(1, self.numbers.clamp(min=0), kept)

    def spread(self, values: Tensor, elsewhere: float = 0.0) -> Tensor:
        """Give the value of each segment (B, S) to its tokens (B, T), and `elsewhere` to the
        rest."""
        return values.gather(1, self.numbers.clamp(min=0)).masked_fill(~self.body, elsewhere)


def end_values(values: Tensor, segments: SegmentMap) -> Tensor:
    """Return the value behind the last token of each segment (B, S), of values (B, T) in float32;
    0 where a response has fewer."""
    return segments.sums(torch.where(segments.is_end, values.float(), 0.0))


def normalized(values: Tensor, segments: SegmentMap, normalize: Normalize) -> Tensor:
    """Return the normalized values of the segments (B, S), of values (B, T); 0 where a response has
    fewer."""
    found = end_values(values, segments)
    numbers = torch.arange(found.shape[1], device=found.device)
    locations = (numbers + 1) / segments.counts.clamp(min=1)[:, None]
    there = numbers < segments.counts[:, None]
    return normalize(locations.clamp(max=1.0), found).masked_fill(~there, 0.0)


def token_rewards(
    values: Tensor,
    segments: SegmentMap,
    normalize: Normalize,
    *,
    interpolation: Interpolation = "even",
    aggregate: Aggregate = "mean",
    unit: float = 1.0,
) -> Tensor:
    """Return the reward of each token (B, T), float32, from values after each token (B, T).

    `unit` multiplies the mean over segments, and is not read by `sum`. Tokens of no segment get 0.
    No reward is larger than `LARGEST_REWARD`.
    """
    rewards_BS = normalized(values, segments, normalize)
    if aggregate == "mean":
        rewards_BS = rewards_BS * unit / segments.counts.clamp(min=1)[:, None]
    rewards_BT = segments.spread(rewards_BS)
    if interpolation == "even":
        rewards_BT = rewards_BT / segments.lengths
    elif interpolation == "last":
        rewards_BT = rewards_BT * segments.is_end
    return rewards_BT.clamp(-LARGEST_REWARD, LARGEST_REWARD)
