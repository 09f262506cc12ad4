"""Games as columns: who judged what in which order, and what it said; and shares of them with
intervals by prompt.

A game whose reply could not be read has no margin (NaN). A battle with such a game counts for
parse failures alone, as it does for ratings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from aligner.arena.merging import Played
from aligner.arena.rating import ENDS
from aligner.arena.resampling import draw
from aligner.arena.votes import FEATURES, UNKNOWN, Floats, Integers, StyleCounts
from aligner.arena.votes import counts as style_counts
from aligner.evaluation.bootstrap import Estimate, or_none

UNNAMED = "unnamed"
"""The judge of rows that name none."""


@dataclass(frozen=True)
class Judgments:
    """A row is a game; `first`, `second`, `prompt`, `judge` are numbers of the names beside them.

    `margin`: score of the first answer less that of the second. `lead`: the same, 0 within the tie
    margin. `is_scored`: both answers have scores of their own, so that these can be compared.
    """

    models: list[str]
    prompts: list[str]
    judges: list[str]
    first: Integers
    second: Integers
    prompt: Integers
    judge: Integers
    battle: Integers
    margin: Floats
    lead: Floats
    is_scored: Floats
    length_first: Floats
    length_second: Floats

    def __len__(self) -> int:
        return len(self.first)

    def where(self, kept: Integers | Floats) -> Judgments:
        """The games that are kept; names and numbers stay."""
        rows = [field.name for field in fields(self) if field.name not in _NAMES]
        return replace(self, **{name: getattr(self, name)[kept] for name in rows})

    @cached_property
    def whole(self) -> Judgments:
        """The games of battles of which every reply could be read."""
        lost = np.bincount(self.battle, np.isnan(self.margin)) if len(self) else self.margin
        return self.where(lost[self.battle] == 0)

    @cached_property
    def pair(self) -> Integers:
        """The same number for both orders of two models."""
        low, high = np.minimum(self.first, self.second), np.maximum(self.first, self.second)
        pairs: Integers = low * len(self.models) + high
        return pairs

    @cached_property
    def is_turned(self) -> Integers:
        """Whether the model whose name sorts second was seen first."""
        return self.first > self.second

    @cached_property
    def for_low(self) -> Floats:
        """Who won, from the view of the model whose name sorts first: 1, 0.5 or 0."""
        sign = np.where(self.is_turned, -1.0, 1.0) * np.sign(self.lead)
        return 0.5 + 0.5 * sign

    @cached_property
    def orders(self) -> tuple[Integers, Integers]:
        """The first game of each battle in either order, of those that were judged in both."""
        low = _first_rows(self.battle, ~self.is_turned)
        high = _first_rows(self.battle, self.is_turned)
        _, at_low, at_high = np.intersect1d(
            self.battle[low], self.battle[high], return_indices=True
        )
        return low[at_low], high[at_high]


_NAMES = ("models", "prompts", "judges")


def judgments_of(games: Sequence[tuple[str, Played]], tie_margin: float) -> Judgments:
    """Columns of games, each with its battle; names sorted."""
    played = [game for _, game in games]
    models, seats = _numbers([g.first for g in played] + [g.second for g in played])
    prompts, prompt = _numbers([game.prompt for game in played])
    judges, judge = _numbers([game.judge or UNNAMED for game in played])
    battle = _numbers([repr((game.judge, name)) for name, game in games])[1]
    margin = np.array([_margin(game) for game in played], float)
    first, second = np.split(seats, 2)
    return Judgments(
        models,
        prompts,
        judges,
        first,
        second,
        prompt,
        judge,
        battle,
        margin,
        np.where(np.abs(margin) <= tie_margin, 0.0, margin),
        np.array([not game.is_graded for game in played], bool),
        np.array([_length(game.style_first) for game in played], float),
        np.array([_length(game.style_second) for game in played], float),
    )


def _numbers(names: Sequence[str]) -> tuple[list[str], Integers]:
    known = {name: number for number, name in enumerate(sorted(set(names)))}
    return list(known), np.array([known[name] for name in names], np.int64)


def _margin(game: Played) -> float:
    if game.score_first is None or game.score_second is None:
        return UNKNOWN
    return game.score_first - game.score_second


def _length(style: StyleCounts) -> float:
    return style_counts(style)[FEATURES.index("length")]


def _first_rows(groups: Integers, kept: Integers) -> Integers:
    """The first kept row of each group."""
    rows = np.flatnonzero(kept)
    return rows[np.unique(groups[rows], return_index=True)[1]]


def mean_by_prompt(values: Floats, prompts: Integers, resamples: int, seed: int) -> Estimate:
    """The mean, and the middle 95% of it when prompts are drawn again; None without values."""
    if not len(values):
        return Estimate(None)
    names, numbers = np.unique(prompts, return_inverse=True)
    sums = np.stack([np.bincount(numbers, values), np.bincount(numbers)], axis=1)
    if len(names) < 2 or resamples < 1:
        return Estimate(float(values.mean()))
    random, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn.append((draw(len(names), 1, random) @ sums)[0])
    total, count = np.array(drawn).T
    low, high = np.quantile(total / count, ENDS)
    return Estimate(float(values.mean()), or_none(low), or_none(high))
