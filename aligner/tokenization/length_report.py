"""What lengths of rows mean for a training: how they are spread, and what is cut, padded or packed
at one longest length or another. Imports no torch.

Rows are packed here as TRL's best fit does, which is close to it and not the same: TRL shuffles and
works in shards. Of many rows a random part is packed.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from aligner.tokenization.batching import padding_share
from aligner.tokenization.dataset import quantiles

SHARES = (0.9, 0.95, 0.99, 1.0)
"""Shares of the rows that other longest lengths keep whole."""
ROUND = 64
"""Longest lengths are proposed as multiples of this."""
BINS = 12
"""Bars of a histogram at the most, beside that of the longest rows."""
PACKED_ROWS = 20_000
"""Rows that are packed to see how well they pack."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows with `low` to `high` tokens, both included."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True, slots=True)
class AtLength:
    """What happens at a longest length. `longer`: rows beyond it; `lost`: share of all tokens that
    cutting them loses; `dropped`: share that dropping them loses; `padding`, `grouped`: shares of
    padding in random batches and in batches of like length, of cut rows; `packed`: share of tokens
    in packed sequences that are of rows, None where rows are not packed."""

    max_length: int
    longer: int
    lost: float
    dropped: float
    padding: float
    grouped: float
    packed: float | None


@dataclass(frozen=True, slots=True)
class LengthReport:
    """Lengths of all rows before anything is cut: `quantiles` at `QUANTILES` of
    `aligner.tokenization.dataset`; `settings`: the recipe's own longest length first."""

    rows: int
    tokens: int
    quantiles: list[int]
    bins: list[Bin]
    settings: list[AtLength]


def report_lengths(
    lengths: Sequence[int], max_length: int, *, batch: int, seed: int, packs: bool
) -> LengthReport:
    """Look at the lengths of rows, in tokens. `batch`: rows of a micro-batch; `packs`: whether the
    method can pack rows."""
    ordered = sorted(lengths)
    settings = [
        at_length(lengths, limit, batch=batch, seed=seed, packs=packs)
        for limit in [max_length, *other_lengths(ordered, max_length)]
    ]
    return LengthReport(
        len(ordered), sum(ordered), quantiles(ordered), histogram(ordered), settings
    )


def other_lengths(ordered: Sequence[int], max_length: int) -> list[int]:
    """Return other longest lengths worth looking at, ascending: those that keep most rows whole."""
    kept = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in SHARES)
    found = {-(-length // ROUND) * ROUND for length in kept}
    return sorted(found - {max_length})


def at_length(
    lengths: Sequence[int], limit: int, *, batch: int, seed: int, packs: bool
) -> AtLength:
    """Say what happens to rows of these lengths at a longest length."""
    total, cut = sum(lengths), [min(length, limit) for length in lengths]
    longer = [length for length in lengths if length > limit]
    return AtLength(
        limit,
        len(longer),
        sum(length - limit for length in longer) / total,
        sum(longer) / total,
        padding_share(cut, batch, seed),
        padding_share(cut, batch, seed, grouped=True),
        packed_fill(cut, limit, seed) if packs else None,
    )


def packed_fill(lengths: Sequence[int], limit: int, seed: int) -> float:
    """Return the share of sequences of `limit` tokens that rows fill, each put where it leaves the
    least room, the longest first. No row is longer than a sequence."""
    some = list(lengths)
    if len(some) > PACKED_ROWS:
        some = random.Random(seed).sample(some, PACKED_ROWS)
    room: list[int] = []  # of each open sequence, ascending
    sequences = 0
    for length in sorted(some, reverse=True):
        place = bisect_left(room, length)
        if place == len(room):
            sequences += 1
            left = limit - length
        else:
            left = room.pop(place) - length
        if left:
            insort(room, left)
    return sum(some) / (sequences * limit) if sequences else 1.0


def histogram(ordered: Sequence[int]) -> list[Bin]:
    """Count rows by length, in bars of one width that is 1, 2 or 5 times a power of ten; the rows
    beyond the 99th percentile stand in one bar if they reach far."""
    top = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    low, width = ordered[0], _width(top - ordered[0] + 1)
    start = low // width * width
    bins, seen = [], 0
    for first in range(start, top + 1, width):
        behind = bisect_left(ordered, first + width)
        bins.append(Bin(first, first + width - 1, behind - seen))
        seen = behind
    if seen < len(ordered):
        bins.append(Bin(bins[-1].high + 1, ordered[-1], len(ordered) - seen))
    return bins


def _width(span: int) -> int:
    width = 1
    while True:
        for step in (1, 2, 5):
            if span <= BINS * width * step:
                return width * step
        width *= 10
