"""What a set of sequences costs to train on: sequences, steps, and real, trained and padded tokens.

The paper's saving is one of sequences, under a trainer that pads every sequence to the longest
length allowed. So a cost is never one number here: what falls, and by how much, depends on how
batches are padded.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEVICE_BATCH = 8
"""Sequences that are padded to their longest together."""

NAMES = {
    "sequences": "sequences",
    "steps": "optimizer steps",
    "real": "real tokens",
    "trained": "tokens with a loss",
    "to_max": "tokens padded to the limit",
    "to_longest": "tokens padded to the longest of 8",
    "packed": "tokens of packed sequences",
}


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of an epoch over some sequences."""

    sequences: float
    steps: float
    real: float
    trained: float
    to_max: float
    to_longest: float
    packed: float


def costs(
    lengths: Sequence[int], trained: float, *, max_tokens: int, batch_size: int, epochs: int = 1
) -> Costs:
    """Count what sequences of these lengths cost, divided by the epochs that they make up. Longer
    ones count as cut."""
    cut = np.minimum(np.asarray(lengths, dtype=np.int64), max_tokens)
    n = len(cut)
    order = cut.tolist()
    random.Random(0).shuffle(order)
    batches = [order[start : start + DEVICE_BATCH] for start in range(0, n, DEVICE_BATCH)]
    return Costs(
        sequences=n / epochs,
        steps=-(-n // batch_size) / epochs,
        real=float(cut.sum()) / epochs,
        trained=trained / epochs,
        to_max=n * max_tokens / epochs,
        to_longest=sum(max(batch) * len(batch) for batch in batches) / epochs,
        packed=_packed(cut, max_tokens) * max_tokens / epochs,
    )


def _packed(lengths: np.ndarray, size: int) -> int:
    """Sequences that best-fit-decreasing packing fills, which is what `sft.packing` does."""
    rooms: list[int] = []
    """The different amounts of room that open sequences have, rising."""
    open_with: Counter[int] = Counter()
    packed = 0
    for length in sorted(lengths.tolist(), reverse=True):
        index = bisect.bisect_left(rooms, length)
        if index == len(rooms):
            packed += 1
            room = size
        else:
            room = rooms[index]
            open_with[room] -= 1
            if not open_with[room]:
                rooms.pop(index)
        left = room - length
        if not open_with[left]:
            bisect.insort(rooms, left)
        open_with[left] += 1
    return packed


def cost_rows(source: Costs, mosaics: Costs) -> list[tuple[str, float, float, float]]:
    """Return (what, of an epoch over the rows, of an epoch of mosaics, ratio) for every cost."""
    rows = []
    for name, label in NAMES.items():
        before, after = getattr(source, name), getattr(mosaics, name)
        rows.append((label, before, after, after / before if before else float("nan")))
    return rows
