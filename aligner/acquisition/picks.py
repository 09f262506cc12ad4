"""From uncertainties and embeddings to the picked pairs, in the order in which they are picked.

    random        every pair as likely as any other
    uncertainty   the most uncertain ones
    diversity     spread over all pairs, far from what is labelled already
    both          spread over the `pool_factor` x budget most uncertain ones

Spread is greedy k-centre (arXiv 1708.00489: the next pick is the point farthest from all picks so
far, which a pool's oddities attract), or the seeding of k-means++ (drawn with the squared distance
as weight, as in BADGE, arXiv 1906.03671), which is kinder. Chance is a hash of the seed and of the
pair's id, so that no choice depends on the order of the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray

ROUNDING = 1e-6
"""Squared distances of unit vectors below this are those of equal rows."""

OnPick = Callable[[int, int], None]
"""Called with (picked so far, to be picked)."""


def draw(seed: int, what: str, name: str) -> float:
    """Return a number in [0, 1) that only depends on the three."""
    digest = hashlib.sha256(f"{seed} {what} {name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def at_random(ids: Sequence[str], seed: int) -> list[int]:
    """Return all indices in a random order."""
    return sorted(range(len(ids)), key=lambda index: draw(seed, "pick", ids[index]))


def most_uncertain(ids: Sequence[str], uncertainties: Sequence[float], seed: int) -> list[int]:
    """Return all indices, the most uncertain first; equals in a random order."""
    return sorted(at_random(ids, seed), key=lambda index: -uncertainties[index])


def shortlist_size(budget: int, pool_factor: float, count: int) -> int:
    """Return among how many of the most uncertain pairs `both` spreads its picks."""
    return min(count, math.ceil(budget * pool_factor))


def k_center(
    vectors: Array, budget: int, centres: Array, first: int, on_pick: OnPick | None = None
) -> list[int]:
    """Pick the row farthest from all centres and picks, again and again. `vectors`: (N, D),
    `centres`: (C, D).

    Without centres `first` is picked first.
    """
    return _pick(
        vectors, budget, centres, first, lambda distances, _: int(np.argmax(distances)), on_pick
    )


def k_means_seeding(
    vectors: Array,
    budget: int,
    centres: Array,
    first: int,
    seed: int,
    on_pick: OnPick | None = None,
) -> list[int]:
    """Pick rows with the squared distance to the nearest centre or pick as their weight. Shapes as
    in `k_center`."""

    def drawn(distances: Array, number: int) -> int:
        chance = draw(seed, "seeding", str(number))
        heights = np.cumsum(np.maximum(distances, 0.0))
        if heights[-1] <= 0.0:  # all that is left lies on what was picked
            left = np.flatnonzero(distances == 0.0)
            return int(left[int(chance * len(left))])
        index = int(np.searchsorted(heights, chance * heights[-1], side="right"))
        return min(index, int(np.flatnonzero(distances > 0.0)[-1]))

    return _pick(vectors, budget, centres, first, drawn, on_pick)


def _pick(
    vectors: Array,
    budget: int,
    centres: Array,
    first: int,
    choose: Callable[[Array, int], int],
    on_pick: OnPick | None,
) -> list[int]:
    """Pick by the squared distance of each row to the nearest centre or pick; -1 stands for a row
    that is picked."""
    squares = np.einsum("nd,nd->n", vectors, vectors).astype(np.float64)

    def distances_to(point: Array) -> Array:
        squared = squares - 2.0 * (vectors @ point).astype(np.float64) + float(point @ point)
        return np.where(squared < ROUNDING, 0.0, squared)

    nearest = np.full(len(vectors), np.inf)
    for centre in centres:
        np.minimum(nearest, distances_to(centre), out=nearest)
    picked: list[int] = []
    budget = min(budget, len(vectors))
    while len(picked) < budget:
        index = first if not picked and not len(centres) else choose(nearest, len(picked))
        picked.append(index)
        np.minimum(nearest, distances_to(vectors[index]), out=nearest)
        nearest[picked] = -1.0
        if on_pick is not None:
            on_pick(len(picked), budget)
    return picked
