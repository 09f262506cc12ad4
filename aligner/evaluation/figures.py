"""Numbers of a model as what each row adds to them, so that they can be resampled.

Each is a sum over rows divided by another: log-probabilities by tokens, wins by pairs, scores by
prompts. Rows with the same prompt form a group, which is drawn as a whole. A bootstrap of such
numbers is a product of matrices: how often each group was drawn, times what it adds.

Legend: N rows, G groups, R draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aligner.evaluation.bootstrap import COVERAGE, Floats, Integers, or_none

MOST_NUMBERS = 2**22
"""Numbers in a matrix of draws, which are made in parts no larger than this."""

Shape = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A number: the sum of `parts` (N,) by that of `sizes` (N,), then `shape` of it.

    `better`: +1 where more is better, -1 where less is, 0 where neither. `repeats`: that it says
    the same as another in another unit, so that a comparison passes over it. `of_tokens`: that its
    unit is a token, so that it means another thing with another tokenizer.
    """

    parts: Floats
    sizes: Floats
    better: int = 0
    shape: Shape | None = None
    repeats: bool = False
    of_tokens: bool = False

    def of(self, parts: Floats, sizes: Floats) -> Floats:
        """Return the number for sums; NaN where nothing was summed up."""
        empty = np.full(np.shape(parts), np.nan)
        found: Floats = np.divide(parts, sizes, out=empty, where=np.asarray(sizes) != 0)
        return found if self.shape is None else self.shape(found)

    @property
    def value(self) -> float:
        """The number itself."""
        return float(self.of(self.parts.sum()[None], self.sizes.sum()[None])[0])

    @property
    def stderr(self) -> float | None:
        """The standard error of a mean over rows that count the same; None of other numbers."""
        if self.shape is not None or not (self.sizes == 1).all():
            return None
        return standard_error(self.parts.tolist())

    def by_group(self, groups: Integers) -> tuple[Floats, Floats]:
        """Return both sums for each group (G,)."""
        count = int(groups.max()) + 1
        sums = (np.bincount(groups, values, count) for values in (self.parts, self.sizes))
        parts_G, sizes_G = (np.asarray(one, dtype=np.float64) for one in sums)
        return parts_G, sizes_G


def mean(values: Sequence[float], better: int = 0) -> Figure:
    """Return the mean of a value for each row."""
    parts = np.array(values, dtype=np.float64)
    return Figure(parts, np.ones(len(parts)), better)


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """The numbers of a model on N rows by name, the group of each row, and what cannot be
    resampled: counts, and shares of all rows together."""

    named: Mapping[str, Figure]
    groups: Integers
    others: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        """Return one number."""
        return self.metrics()[name]

    def metrics(self) -> dict[str, float]:
        """Return every number by name; the standard error of a mean under `..._stderr`."""
        found: dict[str, float] = {}
        for name, figure in self.named.items():
            found[name] = figure.value
            if (error := figure.stderr) is not None and figure.better:
                found[f"{name}_stderr"] = error
        return {**found, **self.others}

    def without_tokens(self) -> Figures:
        """Return the numbers whose unit is not a token."""
        kept = {name: one for name, one in self.named.items() if not one.of_tokens}
        return Figures(kept, self.groups, self.others)

    def intervals(self, *, resamples: int, seed: int = 0) -> dict[str, dict[str, float | None]]:
        """Return the 95% interval of each number, over resampled groups: `low` and `high`.

        None of both where there is nothing to resample: fewer than two groups, or no draws.
        """
        sums = {name: figure.by_group(self.groups) for name, figure in self.named.items()}
        count = len(next(iter(sums.values()))[0])
        drawn: dict[str, list[Floats]] = {name: [] for name in sums}
        for times_RG in draws(count, resamples, seed):
            for name, (parts_G, sizes_G) in sums.items():
                drawn[name].append(self.named[name].of(times_RG @ parts_G, times_RG @ sizes_G))
        return {name: ends(values) for name, values in drawn.items()}


def draws(count: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each of `count` groups is drawn, in parts of (R, G); nothing where there are
    fewer than two to draw from."""
    if count < 2 or resamples < 1:
        return
    random = np.random.default_rng(seed)
    at_once = max(1, MOST_NUMBERS // count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = random.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count)
        yield times.reshape(rows, count).astype(np.float64)


def ends(values: Sequence[Floats]) -> dict[str, float | None]:
    """Return the ends of the percentile interval of drawn numbers."""
    known = np.concatenate(values) if values else np.empty(0)
    known = known[~np.isnan(known)]
    if not len(known):
        return {"low": None, "high": None}
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.quantile(known, [tail, 1.0 - tail])
    return {"low": or_none(low), "high": or_none(high)}


def grouped(keys: Sequence[Any]) -> Integers:
    """Return the group of each row: equal keys as equal numbers, from 0 on."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def exponential(values: Floats) -> Floats:
    """Return e to the power of values; infinite where that is too large."""
    with np.errstate(over="ignore"):
        found: Floats = np.exp(values)
    return found


def bits(values: Floats) -> Floats:
    """Return nats as bits."""
    return values / math.log(2.0)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of independent values; not a number for fewer than
    two."""
    if len(values) < 2:
        return math.nan
    average = math.fsum(values) / len(values)
    variance = math.fsum((value - average) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
