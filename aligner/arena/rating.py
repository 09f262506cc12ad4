"""Ratings with intervals: one joint fit of all votes, resampled by prompt.

A rating is 400 / ln 10 * theta (the Elo scale: 400 points are odds of 10 to 1), moved so that the
anchor has the rating that is asked for, or the mean of all models does. An interval is the middle
95% of the ratings of the resamples. An anchor's interval has no width: its noise is in the others.
A claim about two models comes from `above`, the share of resamples in which the one is above the
other, and not from whether two intervals overlap.

Before the fit it is checked that ratings exist (`connectivity.py`). Where some model never lost to
the rest, or never won, the fit has a small prior, its rating is a bound, and one end of its
interval is open. A resample of which the same is true gets that prior, too, and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from aligner.arena.bradley_terry import TieModel, derivatives, newton
from aligner.arena.connectivity import Bound, bounds, is_strong, islands
from aligner.arena.covariates import Control, covariates_of, refuse_confounded
from aligner.arena.merging import ONE_ORDER
from aligner.arena.resampling import Table, Unit, one_step, resampled, tabulate
from aligner.arena.votes import Floats, Votes
from aligner.errors import DataError
from aligner.evaluation.bootstrap import COVERAGE

POINTS_PER_LOGIT = 400.0 / math.log(10.0)
MOST_SOLVED = 10_000_000
"""Cells times resamples up to which each resample is solved; above, with covariates, it gets one
step."""
MOST_UNEVEN = 10_000
"""How many times the lightest vote the heaviest may weigh; far beyond it a fit is mere rounding."""
EQUAL_DIGITS = 6
"""Ratings that differ by less than this many decimals are equal: the rest is rounding."""
ONE_BY_ONE = "play them in both orders, or rate each game by itself: --merge votes"
ENDS = ((1.0 - COVERAGE) / 2.0, (1.0 + COVERAGE) / 2.0)


@dataclass(frozen=True)
class Settings:
    """How votes are rated."""

    ties: TieModel = "half"
    controls: tuple[Control, ...] = ()
    unit: Unit = "prompt"
    resamples: int = 1000
    seed: int = 0
    anchor: str | None = None
    anchor_rating: float = 1000.0


@dataclass(frozen=True)
class Ratings:
    """Rating and interval of each model; an end that does not exist is infinite, one that could not
    be computed NaN.

    `draws`: (B, M), the ratings of each resample. `coefficients`: name -> value, low, high, in
    logits. `unstable`: resamples in which ratings were not finite without the prior.
    """

    models: list[str]
    rating: Floats
    low: Floats
    high: Floats
    bound: list[Bound]
    draws: Floats
    coefficients: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    unstable: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def rank(self) -> list[int]:
        """1 and how many models have an interval above all of this one's; by rating where there is
        none."""
        low = np.where(np.isnan(self.low), self.rating, self.low)
        high = np.where(np.isnan(self.high), self.rating, self.high)
        return [1 + int((low > end).sum()) for end in high]

    @property
    def rank_ends(self) -> list[tuple[int, int] | None]:
        """Between which ranks each model is in the middle 95% of the resamples; equals share all
        ranks that they take up."""
        if not len(self.draws):
            return [None] * len(self.models)
        draws = self.draws.round(EQUAL_DIGITS)
        best, worst = np.empty(draws.shape, int), np.empty(draws.shape, int)
        for number, row in enumerate(draws):
            rising = np.sort(row)
            best[number] = len(row) - np.searchsorted(rising, row, side="right") + 1
            worst[number] = len(row) - np.searchsorted(rising, row, side="left")
        low = np.quantile(best, ENDS[0], axis=0, method="nearest")
        high = np.quantile(worst, ENDS[1], axis=0, method="nearest")
        return [(int(one), int(other)) for one, other in zip(low, high)]

    @property
    def above(self) -> Floats:
        """(M, M): in which share of the resamples a row's model is above a column's; equal counts
        half, and a model is not compared with itself (NaN)."""
        if not len(self.draws):
            return np.full((len(self.models),) * 2, np.nan)
        share = np.empty((len(self.models),) * 2)
        for model, row in enumerate(share):
            lead = self.draws[:, [model]] - self.draws
            row[:] = (0.5 + 0.5 * np.sign(lead)).mean(axis=0)
        np.fill_diagonal(share, np.nan)
        return share


def rate(votes: Votes, how: Settings) -> Ratings:
    """Fit all votes at once, and again for each resample.

    Raises: DataError where no ratings exist.
    """
    refuse_unratable(votes, how)
    covariates = covariates_of(votes, how.controls)
    table = tabulate(votes, covariates.values, how.ties, how.unit)
    beaten_by = _graph(table, table.total[None])
    anchor = None if how.anchor is None else votes.models.index(how.anchor)
    played = np.bincount(np.concatenate([votes.a, votes.b]), minlength=len(votes.models))
    bound = bounds(beaten_by[0], played, anchor)
    prior = 0.0 if not any(bound) and _has_all_outcomes(table, table.total[None])[0] else 1.0
    fitted = newton(table.design, how.ties, table.total[None], np.array([prior]))[0]
    if covariates.names:
        curvature = derivatives(table.design, how.ties, table.total, prior, fitted)[1]
        refuse_confounded(covariates.names, curvature, len(votes.models))
    drawn, unstable, notes = _draws(table, how, fitted, prior, bool(covariates.names))
    placed = np.array([not end for end in bound]) if not all(bound) else np.ones(len(bound), bool)
    low, high = _ends(_on_scale(drawn, how, anchor, placed))
    low[[end in ("at_most", "unplaced") for end in bound]] = -math.inf
    high[[end in ("at_least", "unplaced") for end in bound]] = math.inf
    return Ratings(
        votes.models,
        _on_scale(fitted[None], how, anchor, placed)[0],
        low,
        high,
        bound,
        _on_scale(drawn, how, anchor, placed),
        _coefficients(covariates.names, how.ties, len(votes.models), fitted, drawn),
        unstable,
        [*covariates.notes, *notes],
    )


def by_category(votes: Votes, how: Settings) -> dict[str, Ratings | str]:
    """Ratings from the votes of each category alone, or why there are none."""
    found: dict[str, Ratings | str] = {}
    for number, name in enumerate(votes.categories):
        try:
            found[name] = rate(votes.where(votes.category == number), how)
        except DataError as error:
            found[name] = error.message
    return found


def refuse_unratable(votes: Votes, how: Settings) -> None:
    """Say why votes give no ratings at all.

    Raises: DataError.
    """
    if not len(votes):
        lost = "; ".join(f"{count:,} {what}" for what, count in votes.left_out.items())
        raise DataError(
            "no vote is left to rate" + (f": {lost}" if lost else ""),
            ONE_BY_ONE if ONE_ORDER in votes.left_out else "give files with votes that count",
        )
    if how.anchor is not None and how.anchor not in votes.models:
        raise DataError(
            f"the anchor {how.anchor!r} has no vote", f"models are {_list(votes.models)}"
        )
    apart = islands(_meetings(votes))
    if len(apart) > 1:
        names = np.array(votes.models, dtype=object)
        groups = "; ".join(f"({_list(names[group].tolist())})" for group in apart[:4])
        more = f", and {len(apart) - 4} more" if len(apart) > 4 else ""
        raise DataError(
            f"the models form {len(apart)} groups that never met: {groups}{more}",
            "add battles between them, or rate each group by itself with --model",
        )
    lightest, heaviest = float(votes.weight.min()), float(votes.weight.max())
    if heaviest > MOST_UNEVEN * lightest:
        raise DataError(
            f"the weights of votes go from {lightest:g} to {heaviest:g}",
            f"keep the largest within {MOST_UNEVEN:,} times the smallest, or leave votes out",
        )
    if how.ties != "half" and not 0 < np.mean(votes.outcome == 0.5) < 1:
        raise DataError(
            f"ties {how.ties} needs both ties and games that are none", "use --ties half"
        )


def _meetings(votes: Votes) -> np.ndarray:
    count = len(votes.models)
    met = np.bincount(votes.a * count + votes.b, minlength=count * count)
    return met.reshape(count, count).astype(np.float32)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


def _graph(table: Table, masses: Floats) -> np.ndarray:
    """(B, M, M), above 0 where a row's model lost to a column's, or tied."""
    design = table.design
    first, second = design.pairs
    real = second < design.models
    first, second, starts = first[real], second[real], design.pair_starts[real]
    tied = masses[..., 2] if masses.shape[-1] == 3 else 0.0
    graph = np.zeros((len(masses), design.models, design.models), np.float32)
    graph[:, second, first] = np.add.reduceat(masses[..., 0] + tied, starts, axis=1)
    graph[:, first, second] = np.add.reduceat(masses[..., 1] + tied, starts, axis=1)
    return graph


def _has_all_outcomes(table: Table, masses: Floats) -> np.ndarray:
    """Whether a model of ties has ties and others to be fitted to."""
    if masses.shape[-1] == 2:
        return np.ones(len(masses), bool)
    tied = masses[..., 2].sum(axis=1)
    return (tied > 0) & (tied < masses.sum(axis=(1, 2)))


def _draws(
    table: Table, how: Settings, fitted: Floats, prior: float, has_covariates: bool
) -> tuple[Floats, int, list[str]]:
    """(B, K) of the resamples, how many were unstable, and what there is to say."""
    nothing = np.empty((0, len(fitted)))
    if how.resamples < 1:
        return nothing, 0, []
    if table.clusters < 2:
        return nothing, 0, [f"there is one {how.unit} alone, so there are no intervals"]
    if has_covariates and table.design.cells * how.resamples > MOST_SOLVED:
        drawn = one_step(table, how.ties, fitted, prior, how.resamples, how.seed)
        note = "intervals with covariates are from one Newton step per resample: the table is large"
        return drawn, 0, [note]
    parts, unstable = [], 0
    for masses in resampled(table, how.resamples, how.seed):
        is_stable = is_strong(_graph(table, masses)) & _has_all_outcomes(table, masses)
        unstable += int((~is_stable).sum())
        given = np.where(is_stable, prior, 1.0)
        parts.append(newton(table.design, how.ties, masses, given, fitted))
    return np.concatenate(parts), unstable, []


def _on_scale(parameters: Floats, how: Settings, anchor: int | None, placed: np.ndarray) -> Floats:
    """(B, M) ratings; without an anchor the mean of the models whose rating is no bound is held."""
    theta = parameters[:, : len(placed)]
    zero = theta[:, placed].mean(axis=1) if anchor is None else theta[:, anchor]
    return POINTS_PER_LOGIT * (theta - zero[:, None]) + how.anchor_rating


def _ends(drawn: Floats) -> tuple[Floats, Floats]:
    """The two ends of the middle 95% of each column; NaN without draws."""
    if not len(drawn):
        return np.full(drawn.shape[1], np.nan), np.full(drawn.shape[1], np.nan)
    low, high = np.quantile(drawn, ENDS, axis=0)
    return low, high


def _coefficients(
    names: Sequence[str], ties: TieModel, models: int, fitted: Floats, drawn: Floats
) -> dict[str, tuple[float, float, float]]:
    all_names = [*names, *(["ties"] if ties != "half" else [])]
    low, high = _ends(drawn[:, models:])
    return {
        name: (float(fitted[models + place]), float(low[place]), float(high[place]))
        for place, name in enumerate(all_names)
    }
