"""What a training on sampled responses shows: means over responses, over tokens, and the seconds of
each phase, since the last log."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from aligner.config.callables import short_name
from aligner.methods.rlhf.credit import Add, Credit, has_spread
from aligner.methods.rlhf.rollout import Group, Response
from aligner.tokenization.segments import third_of

Gather = Callable[[list[Any]], list[Any]]
"""Returns the objects of all ranks."""


class Metrics:
    """Keeps numbers until they are logged. Names of held-out ones begin with `eval_`."""

    def __init__(self, credit: Credit, add: Add, gather: Gather) -> None:
        self.credit, self.add, self.gather = credit, add, gather
        self.numbers: dict[str, list[float]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self.token_sums: dict[str, Tensor] = {}
        self.steps = 0
        """Optimizer steps since the last log."""

    # --- what is kept -----------------------------------------------------------------------------

    def number(self, name: str, value: float) -> None:
        """Keep a number for the mean."""
        self.numbers[name].append(value)

    def groups(self, rows: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> None:
        """Keep what sampled responses show, but for rows that only fill a batch."""
        for row, group in zip(rows, groups):
            if row["weight"] == 0:
                continue
            for one in group:
                self.response(one)
            if self.credit.settings.algorithm == "grpo":
                self.number("reward_std", stdev(map(self.reward, group)))
                self.number("frac_reward_zero_std", float(not has_spread(group)))
                self.number("redraws", float(group[0].attempt))

    def response(self, one: Response, prefix: str = "") -> None:
        """Keep what a response shows."""
        found = {
            "reward": self.reward(one),
            "completions/mean_length": float(len(one.token_ids)),
            "completions/clipped_ratio": float(not one.is_finished),
        }
        for name, score in one.scores.items():
            if score is not None:
                found[f"rewards/{short_name(name)}/mean"] = score
        if one.values:
            found |= self._of_segments(one)
        for name, value in found.items():
            self.number(f"{prefix}{name}", value)

    def _of_segments(self, one: Response) -> dict[str, float]:
        _, rewards, _ = self.credit.segment_rewards([one])
        found = {
            "segments/count": float(len(one.ends)),
            "segments/length": (one.ends[-1] + 1) / len(one.ends),
            "segments/value": fmean(one.values[end] for end in one.ends),
        }
        for third, name in enumerate(("early", "middle", "late")):
            part = rewards[0, third_of(len(one.ends), third)]
            found[f"segments/{name}"] = part.mean().item()
        return found

    def reward(self, one: Response) -> float:
        """Return the reward of a response: the weighted sum of its scores, else the mean of its
        segments."""
        if not one.scores:
            return fmean(one.values[end] for end in one.ends)
        return self.credit.total(one, {})

    def tokens(self, values: Mapping[str, Tensor], mask: Tensor) -> None:
        """Add to sums over trained tokens on the device; `values` and `mask` are (S, L)."""
        sums = self.token_sums
        for name, value in values.items():
            part = torch.stack([(value.detach() * mask).sum().double(), mask.sum().double()])
            sums[name] = sums[name] + part if name in sums else part

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds that a part of a step takes to those of its phase."""
        began = time.monotonic()
        yield
        self.seconds[f"time/{name}"] += time.monotonic() - began

    # --- what is shown ----------------------------------------------------------------------------

    def means(self, split: str) -> dict[str, float]:
        """Return the means since the last time, over all ranks, and forget what they are made of.
        Every rank must call this equally often."""
        if split == "eval":
            return self._of_numbers(split)
        found = self._of_numbers(split) | self._of_tokens()
        self.steps, self.seconds, self.token_sums = 0, defaultdict(float), {}
        return found

    def _of_numbers(self, split: str) -> dict[str, float]:
        names = [name for name in self.numbers if name.startswith("eval_") == (split == "eval")]
        mine = {}
        for name in names:
            values = self.numbers.pop(name)
            mine[name] = (sum(values), len(values))
        if split == "train":
            for name, seconds in self.seconds.items():
                mine[name] = (seconds, max(1, self.steps))
        found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for one in self.gather([mine]):
            for name, (total, count) in one.items():
                found[name][0] += total
                found[name][1] += count
        return {name: total / count for name, (total, count) in sorted(found.items())}

    def _of_tokens(self) -> dict[str, float]:
        if not self.token_sums:
            return {}
        totals = self.add(torch.stack(list(self.token_sums.values()))).tolist()
        means = {}
        for name, (total, count) in zip(self.token_sums, totals):
            if count:
                means[name] = total / count
        return means
