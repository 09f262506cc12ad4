"""Which rows the optimizer steps of a rollout train on.

A rollout is the responses to the prompts of S optimizer steps, sampled at once with one policy. The
steps that follow go through them I times, each on its own part: the first time in the order of the
rows, then, where there are several parts, in orders drawn from seed, epoch, rollout and time. An
epoch ends with a rollout of what is left.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from aligner.generation.sampling import number_of
from aligner.training.sampler import SeededSampler


class RolloutOrder(Sampler[int]):
    """The rows of a sampler, those of each rollout `times` times; rows that only fill a batch stay
    last. `steps`: S."""

    def __init__(self, sampler: SeededSampler, steps: int, times: int) -> None:
        self.sampler, self.steps, self.times = sampler, steps, times

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler) * self.times

    def __iter__(self) -> Iterator[int]:
        order, size = list(self.sampler), self.sampler.rows_per_step * self.steps
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield from rows
            for time in range(1, self.times):
                yield from rows if self.steps == 1 else self._shuffled(rows, start, time)

    def _shuffled(self, rows: list[int], start: int, time: int) -> list[int]:
        sampler = self.sampler
        seed = number_of(sampler.seed, "rollout", sampler.epoch, start, time)
        real = [row for row in rows if row < sampler.num_rows]
        places = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        return [*(real[place] for place in places.tolist()), *rows[len(real) :]]


def steps_to_sample(step: int, epoch_steps: int, steps: int, times: int) -> int:
    """Return how many optimizer steps' prompts are answered before optimizer step `step`, counted
    from 0; 0 where it trains on responses that are there.

    `epoch_steps`: optimizer steps of an epoch, all times included.
    """
    place = step % epoch_steps
    if place % (steps * times):
        return 0
    return min(steps, (epoch_steps - place) // times)
