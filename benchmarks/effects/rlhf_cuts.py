"""Credit by sampling on: what a response is worth at a cut is the mean reward of responses that are
sampled on from there (SPO, arXiv 2505.23564, "chain").

A place at which the model chooses is one whose token had a probability below `SURE`. Every so many
of them a segment ends, and each of its tokens gets V(next cut) - V(this cut); behind the last cut V
is the response's own reward. Advantages are divided by the standard deviation of the step, as those
of segments are; the paper's mask, which leaves out tokens that were sure, is not used.

It exists here alone, as something to compare with: sampling, rewards and training are the
product's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from aligner.generation.engines import engine_for
from aligner.generation.requests import Request
from aligner.generation.sampling import Sampling, number_of
from aligner.methods.rlhf.credit import Credit
from aligner.methods.rlhf.rollout import Group, Response, Roller, padded
from benchmarks.effects.rlhf_arms import Cutting

SURE = 0.9

Row = Mapping[str, Any]


@dataclass
class Continued:
    """The responses that were sampled on from one."""

    response: Response
    cuts: list[int]
    """Places, the first 0, that the response was cut before."""
    branches: list[Group]
    """From each cut; whole responses, what stands before the cut included."""


@dataclass
class SampledOn:
    """Samples on from the cuts of the responses of a step, and gives their tokens advantages."""

    cutting: Cutting
    found: list[list[Continued]] = field(default_factory=list)
    """For each prompt of the step, and each response to it."""

    def sample(self, roller: Roller, model: Any, rows: Sequence[Row], groups: list[Group]) -> int:
        """Sample on, and return how many tokens that took."""
        self.found, requests = [], []
        for row, group in zip(rows, groups):
            self.found.append([Continued(one, self._cuts(one), []) for one in group])
            for one in self.found[-1]:
                requests += [self._request(roller, row, one.response, cut) for cut in one.cuts]
        engine = engine_for(model, name=roller.engine, batch_size=roller.batch_size)
        sampled = iter(engine.generate(requests))
        tokens = 0
        for row, continued in zip(rows, self.found):
            for one in continued:
                for cut in one.cuts:
                    behind = next(sampled)
                    tokens += sum(len(each.token_ids) for each in behind)
                    one.branches.append(_whole(roller, row, one.response, cut, behind))
        return tokens

    def _cuts(self, response: Response) -> list[int]:
        chosen = [
            place
            for place, logp in enumerate(response.engine_logps)
            if place > 0 and logp < math.log(SURE)
        ]
        return [0, *chosen][:: self.cutting.every]

    def _request(self, roller: Roller, row: Row, response: Response, cut: int) -> Request:
        sampling = Sampling(
            max_new_tokens=roller.settings.max_new_tokens - cut,
            temperature=roller.settings.temperature,
            num_samples=self.cutting.samples,
        )
        name = (roller.seed, "sampled on", tuple(response.token_ids), response.sample, cut)
        ids = [*row["prompt_ids"], *response.token_ids[:cut]]
        return Request(ids, sampling, roller.stops, number_of(*name))

    @property
    def branches(self) -> list[Group]:
        """All that was sampled on, for each prompt."""
        return [list(chain(*chain(*(one.branches for one in each)))) for each in self.found]

    def worth(self) -> dict[int, list[float]]:
        """Return the advantage of each token (T,), not scaled, by the id of its response; all are
        scored."""
        found = {}
        for one in chain(*self.found):
            values = [fmean(map(_reward, branch)) for branch in one.branches]
            values.append(_reward(one.response))
            ends = [*one.cuts, len(one.response.token_ids)]
            row: list[float] = []
            for (start, end), (now, then) in zip(pairwise(ends), pairwise(values)):
                row += [then - now] * (end - start)
            found[id(one.response)] = row
        return found

    def credit(self) -> type[Credit]:
        """Return the credit that gives these advantages."""
        sampled = self

        class Cut(Credit):
            def advantages(self, groups: Any, counted: Any = None) -> Tensor:
                worth = sampled.worth()
                rows = [worth[id(one)] for one in chain.from_iterable(groups)]
                spread = torch.tensor(list(chain(*rows))).std()
                return padded(rows, max(map(len, rows))) / (spread + 1e-4)

        return Cut


def _reward(response: Response) -> float:
    return sum(score or 0.0 for score in response.scores.values())


def _whole(
    roller: Roller, row: Row, response: Response, cut: int, behind: Sequence[Any]
) -> list[Response]:
    """Return the responses that begin like another."""
    found = []
    for each in behind:
        ids, finished = response.token_ids[:cut] + each.token_ids, each.finish_reason == "stop"
        text = roller.tokenizer.decode(
            ids[:-1] if finished else ids,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        logps = response.engine_logps[:cut] + list(each.logps)
        number = response.sample
        found.append(Response(row["row"], number, [], ids, finished, text, logps))
    return found
