"""What a segment reward model's values are on average at each location of a response, and how far
they scatter there (arXiv 2501.02790, section 3.3).

Trained on means over segments, such a model has values of any level and drift: adding a number, or
a function of the location, changes no comparison. Both would act on the length of answers at once,
an offset as a bribe for each further segment. So the values of sampled responses are made

    (r - mu(p)) / sigma(p),    mu(p) = w_mu ln p + b_mu,    sigma(p) = w_sigma ln p + b_sigma

with p = j/K the location of segment j of K. `weighted`, the default, fits to all segments alike, by
bins of ln p, with Huber's weights: the slope of mu to how values change within responses, each less
its response's mean, then the level, and sigma to what is left. Between responses the slope would
also hold how those of many segments differ from those of few, since small p are theirs alone: where
their number tells of quality, that would be taken off as if it were the place's. `huber_groups` is
the paper's code: groups of locations rounded to 0.001, each with the same weight, and
scikit-learn's Huber regression, also of groups of one segment, whose spread is 0. Where we differ,
in both forms: sigma has a floor (theirs turns negative at the start of long responses, and with it
the sign of rewards), locations before the first that was fitted count as that one, sums and not
averages are reduced over ranks, and another fingerprint is refused (theirs falls back to no
normalization).

Replacing r by a r + b + d ln p with a > 0 changes nothing of what `weighted` gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from aligner.errors import DataError, TrainingError, UsageError
from aligner.runs.files import dumps, parse_json, write_atomically

Form = Literal["weighted", "huber_groups"]

BINS = 64
"""Bins, uniform in ln p."""
FEWEST_IN_BIN = 30
"""Segments that a bin must have to say how far values scatter."""
FEWEST_BINS = 3
"""Bins that a line is fitted to; with fewer, mean and spread do not hang on the location."""
FLOOR = 0.1
"""Smallest sigma, as a share of the spread of all segments around mu."""
STEPS = 10
"""Times that Huber's weights are computed again."""

FIT_AGAIN = "delete it and add --resume: the same normalizer is fitted again"

Reduce = Callable[[Tensor, str], Tensor]
"""Reduces a tensor over all ranks, by "sum" or "max"."""


@dataclass(frozen=True)
class LocationNormalizer:
    """Lines of mean and spread over ln p. `smallest`: the first location that was fitted; `unit`:
    what gives the mean over the segments of the fitted responses a standard deviation of 1;
    `segments`: how many were seen; `note`: what a user should know of the fit."""

    mean_slope: float
    mean: float
    spread_slope: float
    spread: float
    floor: float
    smallest: float
    unit: float
    segments: int
    fingerprint: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def __call__(self, locations: Tensor, values: Tensor) -> Tensor:
        """Normalize values at locations in (0, 1], of one shape, in float32."""
        log_p = locations.float().clamp(min=self.smallest).log()
        spread = (self.spread_slope * log_p + self.spread).clamp(min=self.floor)
        return (values.float() - self.mean_slope * log_p - self.mean) / spread

    def save(self, file: Path) -> None:
        """Write it as JSON, with a checksum."""
        content = asdict(self)
        write_atomically(file, dumps({**content, "sum": _sum(content)}, indent=2) + "\n")

    @classmethod
    def load(cls, file: Path, fingerprint: Mapping[str, str]) -> LocationNormalizer:
        """Read what `save` wrote.

        Raises: DataError when it is damaged; UsageError when it was fitted to values of something
        else than `fingerprint` says.
        """
        content = parse_json(file, FIT_AGAIN, needed=["sum"])
        if content.pop("sum") != _sum(content):
            raise DataError(f"{file} is damaged: it is not what was written there", FIT_AGAIN)
        found = cls(**content)
        names = [*fingerprint, *(name for name in found.fingerprint if name not in fingerprint)]
        for name in names:
            old, new = found.fingerprint.get(name, "nothing"), fingerprint.get(name, "nothing")
            if old != new:
                raise UsageError(
                    f"{file} was fitted with another {name}: {old}, and here it is {new}",
                    "fit it again; values of one model normalized for another mean nothing",
                )
        return found


def _sum(content: Mapping[str, Any]) -> str:
    return sha256(dumps(content).encode("utf-8")).hexdigest()[:16]


def fit(
    samples: Sequence[Sequence[float]],
    *,
    form: Form = "weighted",
    fingerprint: Mapping[str, str] | None = None,
    reduce: Reduce | None = None,
) -> LocationNormalizer:
    """Fit a normalizer to sampled responses, each given by the values at its segments' ends.

    With `reduce`, a rank gives its own responses, each once, and all ranks get the same normalizer.

    Raises: TrainingError when the values hardly differ, so that there is nothing to learn.
    """
    reduce = reduce or (lambda values, how: values)
    seen = _Seen.of(samples, reduce)
    steps = _grouped(seen, reduce) if form == "huber_groups" else _weighted(seen, reduce)
    line = steps or _Lines(0.0, seen.center, 0.0, seen.scale, seen.scale)
    note = "" if steps else "too few segments or locations for a line: mean and spread are constant"
    found = LocationNormalizer(
        *(line.mean_slope, line.mean, line.spread_slope, line.spread),
        floor=FLOOR * line.around,
        smallest=seen.smallest,
        unit=1.0,
        segments=seen.count,
        fingerprint=dict(fingerprint or {}),
        note=note,
    )
    unit = _unit(found, samples, reduce)
    if unit is None:
        more = "the responses hardly differ in their means, so these are not scaled"
        return replace(found, note="; ".join(filter(None, (note, more))))
    return replace(found, unit=unit)


@dataclass(frozen=True, slots=True)
class _Seen:
    """All segments of this rank, and what all ranks know of theirs. `log_p` and `values` (N,), the
    values less `center` and divided by `scale`; `within` (2, N): both less their means over the
    response."""

    log_p: Tensor
    values: Tensor
    within: Tensor
    smallest: float
    center: float
    scale: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[Sequence[float]], reduce: Reduce) -> _Seen:
        values = torch.tensor([value for row in samples for value in row], dtype=torch.float64)
        assert values.isfinite().all(), "values are numbers"
        most = reduce(torch.tensor(max(map(len, samples), default=0)), "max").item()
        places = [torch.arange(1, len(row) + 1, dtype=torch.float64) / len(row) for row in samples]
        count, total = reduce(torch.tensor([len(values), values.sum()], dtype=torch.float64), "sum")
        center = total / count.clamp(min=1)
        scale = (reduce((values - center).square().sum(), "sum") / count.clamp(min=1)).sqrt()
        if not scale > 1e-6 * center.abs().clamp(min=1.0):
            raise TrainingError(
                f"the reward model gives nearly the same value, {center.item():.4g}, to all "
                f"{int(count):,} segments of the sampled responses",
                "check that it was trained, and that it reads responses of this kind",
            )
        log_p = torch.cat([*places, values.new_zeros(0)]).log()
        values = (values - center) / scale
        sizes = torch.tensor([len(row) for row in samples], dtype=torch.long)
        within = _less_row_means(torch.stack([log_p, values]), sizes)
        return cls(log_p, values, within, 1 / most, center.item(), scale.item(), int(count))


def _less_row_means(parts: Tensor, sizes: Tensor) -> Tensor:
    """Take from `parts` (2, N) their means over each row, N being rows of these `sizes` in turn."""
    rows = torch.repeat_interleave(sizes)
    sums = parts.new_zeros(2, len(sizes)).index_add(1, rows, parts)
    return parts - (sums / sizes.clamp(min=1))[:, rows]


@dataclass(frozen=True, slots=True)
class _Lines:
    """Mean and spread as lines over ln p, and the spread `around` the mean's line."""

    mean_slope: float
    mean: float
    spread_slope: float
    spread: float
    around: float


def _binned(seen: _Seen, places: Tensor, bins: int, reduce: Reduce) -> tuple[Tensor, ...]:
    """Sums over bins (bins,), of all ranks: of 1, x, x^2, r, r^2 and r x, with x = ln p, and of x
    and r within responses."""
    x, r = seen.log_p, seen.values
    parts = torch.stack([torch.ones_like(x), x, x * x, r, r * r, r * x, *seen.within])
    return reduce(parts.new_zeros(len(parts), bins).index_add(1, places, parts), "sum").unbind()


def _weighted(seen: _Seen, reduce: Reduce) -> _Lines | None:
    """Lines by least squares with Huber's weights over bins that hold enough; None where there are
    too few."""
    lowest = math.log(seen.smallest)
    shares = (seen.log_p - lowest) / (-lowest if lowest < 0 else 1.0)
    sums = _binned(seen, (shares * BINS).long().clamp(0, BINS - 1), BINS, reduce)
    count, x, xx, r, rr, rx, inner_x, inner_r = (part[sums[0] >= FEWEST_IN_BIN] for part in sums)
    if len(count) < FEWEST_BINS:
        return None
    middle = x / count
    slope, _ = _line(inner_x / count, inner_r / count, count)
    start = ((r - slope * x).sum() / count.sum()).item()
    squares = rr - 2 * (slope * rx + start * r)
    squares = squares + slope**2 * xx + 2 * slope * start * x + start**2 * count
    offsets = r - slope * x - start * count
    spread = ((squares - offsets**2 / count).clamp(min=0) / (count - 1)).sqrt()
    spread_slope, spread_start = _line(middle, spread, count)
    around = (squares.sum() / count.sum()).sqrt().item()
    return _scaled(seen, slope, start, spread_slope, spread_start, around)


def _scaled(
    seen: _Seen, slope: float, start: float, spread_slope: float, spread: float, around: float
) -> _Lines:
    """Lines of the values as they were, from lines of the standardized ones."""
    scale = seen.scale
    mean = start * scale + seen.center
    return _Lines(slope * scale, mean, spread_slope * scale, spread * scale, around * scale)


def _line(x: Tensor, y: Tensor, weights: Tensor) -> tuple[float, float]:
    """Slope and intercept of y over x (N,), by least squares with Huber's weights (k = 1.345)."""
    robust = torch.ones_like(weights)
    for _ in range(STEPS):
        share = weights * robust / (weights * robust).sum()
        middle, level = (share * x).sum(), (share * y).sum()
        slope = (share * (x - middle) * (y - level)).sum() / (share * (x - middle) ** 2).sum()
        off = (y - level - slope * (x - middle)).abs()
        limit = 1.345 * off.median() / 0.6745
        if limit < 1e-9:
            break
        robust = (limit / off.clamp(min=1e-12)).clamp(max=1.0)
    return slope.item(), (level - slope * middle).item()


def _grouped(seen: _Seen, reduce: Reduce) -> _Lines | None:
    """The paper's lines: over groups of locations rounded to 0.001, which weigh the same. A group
    of one segment says nothing of the spread."""
    places = (seen.log_p.exp() * 1000).round().long().clamp(1, 1000)
    count, _, _, r, rr, *_ = _binned(seen, places, 1001, reduce)
    there = (count > 0).nonzero()[:, 0]
    several = (count > 1).nonzero()[:, 0]
    if len(several) < FEWEST_BINS:
        return None
    means = (r / count)[there]
    spreads = (rr / count - (r / count) ** 2).clamp(min=0).sqrt()[several]
    raw_means, raw_spreads = means * seen.scale + seen.center, spreads * seen.scale
    mean_slope, mean = huber_line((there / 1000).log(), raw_means)
    spread_slope, spread = huber_line((several / 1000).log(), raw_spreads)
    return _Lines(mean_slope, mean, spread_slope, spread, seen.scale)


def huber_line(
    x: Tensor, y: Tensor, epsilon: float = 1.35, alpha: float = 1e-4
) -> tuple[float, float]:
    """Return slope w and intercept of Huber's regression of y on x (N,), the minimum over them and
    s > 0 of

        sum_i (s + h((y_i - w x_i - b) / s) s) + alpha w^2

    with h(z) = z^2 up to `epsilon` and 2 epsilon |z| - epsilon^2 beyond, as scikit-learn defines it
    (A. Owen, "A robust hybrid of lasso and ridge regression", 2007).
    """
    x, y = x.double(), y.double()
    columns = torch.stack([x, torch.ones_like(x)], dim=1)
    scale = y.std().clamp(min=1e-9)
    robust = torch.ones_like(y)
    line = torch.zeros(2, dtype=torch.float64)
    for _ in range(1000):
        weighted = columns * (robust / scale)[:, None]
        penalty = torch.diag(line.new_tensor([alpha, 0.0]))
        before, line = line, torch.linalg.solve(weighted.T @ columns + penalty, weighted.T @ y)
        off = (y - columns @ line).abs()
        inside = off <= epsilon * scale
        left = inside.sum() + (~inside).sum() * (1 - epsilon**2)
        scale = (off[inside].square().sum() / left.clamp(min=1e-9)).sqrt().clamp(min=1e-9)
        robust = (epsilon * scale / off.clamp(min=1e-12)).clamp(max=1.0)
        if torch.allclose(line, before, rtol=1e-12, atol=1e-12):
            break
    return line[0].item(), line[1].item()


def _unit(
    found: LocationNormalizer, samples: Sequence[Sequence[float]], reduce: Reduce
) -> float | None:
    """What gives the means over responses a standard deviation of 1; None where they do not
    differ."""
    means = []
    for row in filter(len, samples):
        locations = torch.arange(1, len(row) + 1) / len(row)
        means.append(found(locations, torch.tensor(row)).double().mean())
    stacked = torch.stack(means) if means else torch.zeros(0, dtype=torch.float64)
    count, total, squares = reduce(
        torch.stack([stacked.new_tensor(len(means)), stacked.sum(), stacked.square().sum()]), "sum"
    )
    if count < 2:
        return None
    spread = ((squares - total**2 / count).clamp(min=0) / (count - 1)).sqrt().item()
    return 1 / spread if spread > 1e-6 else None
