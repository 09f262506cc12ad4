"""Bootstrap intervals of anything that is computed from weighted rows, by resampling groups of
rows.

Rows that are not independent (the pairs of one prompt) form a group and are drawn together, as
often as chance says; a statistic sees each draw as a weight for each row, 0 where its group was not
drawn. So no row is ever copied, and one pass serves all statistics. The percentile interval is
honest for shares well inside (0, 1) over some tens of groups; for a share that is 0 or 1 in the
sample it has no width, whatever the number of rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

Statistic = Callable[[Floats], Floats]
"""Weights of the rows -> some numbers; not a number where nothing is left to compute one from."""

COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and the ends of its interval; None where one is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None


def intervals(statistic: Statistic, groups: Integers, *, resamples: int, seed: int) -> Floats:
    """Lower and upper ends, as an array of two rows. Draws in which a number is not defined do not
    count for it.

    `groups` holds the group of each row, from 0 on without gaps. With no draws, or fewer than two
    groups, there is nothing to vary, and all ends are not a number.
    """
    count = int(groups.max()) + 1 if len(groups) else 0
    if count < 2 or resamples < 1:
        return np.full((2, len(statistic(np.ones(len(groups))))), np.nan)
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        times = np.bincount(random.integers(count, size=count), minlength=count)
        draws.append(statistic(times[groups].astype(np.float64)))
    tail = (1.0 - COVERAGE) / 2.0
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # a column without any number stays without one
        ends: Floats = np.nanquantile(np.stack(draws), [tail, 1.0 - tail], axis=0)
    return ends


def shares(wins: Floats, groups: Integers, count: int) -> Statistic:
    """The mean of `wins` in each of `count` groups."""

    def statistic(weights: Floats) -> Floats:
        total = np.bincount(groups, weights, count)
        won = np.bincount(groups, weights * wins, count)
        return np.divide(won, total, out=np.full(count, np.nan), where=total > 0)

    return statistic


def estimates(
    parts: Mapping[str, Statistic], groups: Integers, *, resamples: int, seed: int
) -> dict[str, list[Estimate]]:
    """Every number of every part with its interval, all from the same draws."""

    def together(weights: Floats) -> Floats:
        return np.concatenate([part(weights) for part in parts.values()])

    alone = [part(np.ones(len(groups))) for part in parts.values()]
    low, high = intervals(together, groups, resamples=resamples, seed=seed)
    found: dict[str, list[Estimate]] = {}
    start = 0
    for name, values in zip(parts, alone):
        ends = zip(values, low[start : start + len(values)], high[start : start + len(values)])
        found[name] = [Estimate(*map(or_none, numbers)) for numbers in ends]
        start += len(values)
    return found


def or_none(value: float) -> float | None:
    """The number, or None where it is not one."""
    return None if np.isnan(value) else float(value)
