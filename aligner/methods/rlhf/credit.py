"""From scored responses to the advantage of each of their tokens.

Outcomes: each scorer's numbers, less what truncation costs, become advantages within the groups;
with several scorers each is normalized by itself before they are added up with their weights, and
the sum is brought to one scale over the step (GDPO, arXiv 2601.05242): so none of them drowns the
others by its spread. A response without a verdict counts as the mean of its group.

Legend: N responses in groups of G, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

import torch
from torch import Tensor

from aligner.methods.rlhf.advantages import (
    EPSILON,
    location_advantages,
    mixed_advantages,
    outcome_advantages,
    process_advantages,
)
from aligner.methods.rlhf.normalizer import LocationNormalizer
from aligner.methods.rlhf.recipe import Rlhf
from aligner.methods.rlhf.rollout import Group, Response, padded
from aligner.methods.rlhf.segment_rewards import SegmentMap, normalized, token_rewards

Add = Callable[[Tensor], Tensor]
"""Adds a tensor up over all ranks."""


@dataclass(frozen=True)
class Credit:
    """Gives advantages to the responses of a step."""

    settings: Rlhf
    normalizer: LocationNormalizer | None = None
    add: Add = lambda sums: sums

    def advantages(self, groups: Sequence[Group], counted: Sequence[bool] | None = None) -> Tensor:
        """Return the advantage of each token (N, T), 0 behind a response's end; responses in the
        order of the groups.

        `counted`: which groups are trained on; the others only fill a batch, and stay out of what
        is computed over the step. Every rank must call this equally often.
        """
        responses = list(chain.from_iterable(groups))
        mask = self._mask(responses)
        real = torch.tensor([True] * len(groups) if counted is None else list(counted))
        real = real.repeat_interleave(len(groups[0]))
        if self.settings.unit == "sequence":
            found = self.outcomes(groups, real)[:, None] * mask
        else:
            found = self._of_segments(groups, mask, real)
        if self.settings.truncated == "mask":
            kept = torch.tensor([one.is_finished for one in responses])
            found = found * kept[:, None]
        return found

    def _mask(self, responses: Sequence[Response]) -> Tensor:
        lengths = torch.tensor([len(one.token_ids) for one in responses])
        return torch.arange(int(lengths.max())) < lengths[:, None]

    # --- outcomes ---------------------------------------------------------------------------------

    def outcomes(self, groups: Sequence[Group], real: Tensor) -> Tensor:
        """Return the advantage of each response (N,) by the scorers of whole responses; `real` (N,)
        says which are counted."""
        settings = self.settings
        names = list(groups[0][0].scores)
        weights = settings.reward_weights or [1.0] * len(names)
        size = len(groups[0])
        parts = []
        for name in names:
            scores = torch.tensor([self.reward(group, name) for group in groups]).flatten()
            parts.append(self._within_groups(scores, size, real))
        total = sum(weight * part for weight, part in zip(weights, parts))
        assert isinstance(total, Tensor), "there is a scorer"
        return total if len(parts) == 1 else total / self._spread(total[real])

    def reward(self, group: Group, name: str) -> list[float]:
        """Return a scorer's number for each response of a group, less what truncation costs."""
        known = [score for one in group if (score := one.scores[name]) is not None]
        mean = fmean(known) if known else 0.0
        scores = [mean if (score := one.scores[name]) is None else score for one in group]
        return [score - self.penalty(one) for score, one in zip(scores, group)]

    def penalty(self, response: Response) -> float:
        """Return what is taken off from a response's reward, once: for having no end, and for
        coming close to the limit."""
        settings, length = self.settings, len(response.token_ids)
        found = 0.0 if response.is_finished else settings.missing_eos_penalty
        if settings.overlong_buffer is not None:
            over = length - (settings.max_new_tokens - settings.overlong_buffer)
            found += min(1.0, max(0.0, over / settings.overlong_buffer))
        return found

    def _within_groups(self, scores: Tensor, size: int, real: Tensor) -> Tensor:
        settings = self.settings
        scale = settings.scale if settings.scale != "batch" else "none"
        found = outcome_advantages(scores, size, baseline=settings.baseline, scale=scale)
        return found / self._spread(scores[real]) if settings.scale == "batch" else found

    def _spread(self, values: Tensor) -> Tensor:
        """The standard deviation over the step's values (N,), of all ranks."""
        exact = values.double()
        count, total = self.add(torch.stack([exact.new_tensor(exact.numel()), exact.sum()]))
        squares = self.add((exact - total / count).square().sum())
        return ((squares / (count - 1).clamp(min=1)).sqrt() + EPSILON).to(values.dtype)

    # --- segments ---------------------------------------------------------------------------------

    def segment_rewards(self, responses: Sequence[Response]) -> tuple[SegmentMap, Tensor, Tensor]:
        """Return how responses are cut, and the normalized reward of each segment (N, S) and of
        each token (N, T)."""
        assert self.normalizer is not None, "segments are normalized"
        width = max(len(one.token_ids) for one in responses)
        segments = SegmentMap.from_ends([one.ends for one in responses], width)
        values = padded([one.values for one in responses], width)
        rewards = token_rewards(
            values,
            segments,
            self.normalizer,
            interpolation=self.settings.interpolation,
            aggregate=self.settings.aggregate,
            unit=self.normalizer.unit,
        )
        return segments, normalized(values, segments, self.normalizer), rewards

    def _of_segments(self, groups: Sequence[Group], mask: Tensor, real: Tensor) -> Tensor:
        settings, size = self.settings, len(groups[0])
        responses = list(chain.from_iterable(groups))
        segments, of_segments, rewards = self.segment_rewards(responses)
        if settings.credit == "mixed":
            outcomes = self.outcomes(groups, real)
            return mixed_advantages(outcomes, of_segments, segments, mask, settings.alpha)
        self._penalize(rewards, responses)
        if settings.credit == "process":
            found = process_advantages(of_segments, segments, size)
        else:
            lam = 1.0 if settings.gae_lambda is None else settings.gae_lambda
            found = location_advantages(rewards, segments, size, lam=lam)
        found = found * mask
        return (
            found if settings.scale == "none" else found / self._spread(found[mask & real[:, None]])
        )

    def _penalize(self, rewards: Tensor, responses: Sequence[Response]) -> None:
        """Take off what a missing end costs, once, at the last token of `rewards` (N, T)."""
        for row, one in enumerate(responses):
            if not one.is_finished:
                rewards[row, len(one.token_ids) - 1] -= self.settings.missing_eos_penalty

    # --- rewards as they are, for a critic --------------------------------------------------------

    def paid(self, responses: Sequence[Response], silent: Mapping[str, float]) -> Tensor:
        """Return the reward of each token (N, T), that of a whole response at its last one, less
        what truncation costs. `silent`: what counts where a scorer said nothing."""
        if self.settings.unit != "sequence":
            rewards = self.segment_rewards(responses)[2]
            self._penalize(rewards, responses)
            return rewards
        rewards = torch.zeros(len(responses), max(len(one.token_ids) for one in responses))
        for row, one in enumerate(responses):
            rewards[row, len(one.token_ids) - 1] = self.total(one, silent)
        return rewards

    def total(self, response: Response, silent: Mapping[str, float]) -> float:
        """Return the weighted sum of a response's scores, less what truncation costs."""
        weights = self.settings.reward_weights or [1.0] * len(response.scores)
        found = 0.0
        for weight, (name, score) in zip(weights, response.scores.items()):
            found += weight * (silent.get(name, 0.0) if score is None else score)
        return found - self.penalty(response)

    def silent_scores(self, responses: Sequence[Response]) -> dict[str, float]:
        """Return each scorer's mean over the responses of all ranks that it scored."""
        names = self.settings.reward_models
        sums = torch.zeros(len(names), 2, dtype=torch.float64)
        for one in responses:
            for row, name in zip(sums, names):
                if (score := one.scores.get(name)) is not None:
                    row += torch.tensor([score, 1.0], dtype=torch.float64)
        totals = self.add(sums).tolist()
        return {name: total / max(1.0, count) for name, (total, count) in zip(names, totals)}


def has_spread(group: Group) -> bool:
    """Say whether the responses of a group differ in what a scorer or the segment model says."""
    for name in group[0].scores:
        if len({one.scores[name] for one in group}) > 1:
            return True
    return len({tuple(one.values) for one in group}) > 1
