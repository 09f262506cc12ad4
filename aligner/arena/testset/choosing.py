"""From clusters of prompts to the items of a test set (arXiv 2407.10627, section 4.1).

* diverse: some prompts of each cluster, drawn at random;
* hard: more prompts of each cluster, drawn at random, of which the hardest are kept.

The paper's two subsets may hold the same prompts. Here a prompt is in one of them, diverse first.
Where clusters are too small for their share, other prompts take the places, drawn at random, and
how many is said. Then each subset is parted into `dev`, to choose by, and `test`, to report.

Plain functions: chance is a hash of the seed, of a prompt's id, and of what is drawn, so that being
drawn for a cluster says nothing of the split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aligner.acquisition.picks import draw

FEWEST = 20
"""Prompts to a cluster, on average, below which there are fewer clusters."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """What a subset lacked: clusters with too few prompts, places that prompts of other clusters
    took, and places that stayed empty."""

    small_clusters: int = 0
    topped_up: int = 0
    empty: int = 0


def cluster_count(asked: int, prompts: int) -> int:
    """Return how many clusters there are: as many as asked for, but no more than let each have
    `FEWEST` prompts on average."""
    return max(1, min(asked, prompts // FEWEST))


def draw_from_clusters(
    labels: Sequence[int], ids: Sequence[str], per_cluster: int, seed: int, taken: set[int]
) -> tuple[list[int], Shortfall]:
    """Return the indices of `per_cluster` prompts of each cluster, none of those that are taken,
    and what there was too little of: others take their places."""
    left = [index for index in range(len(ids)) if index not in taken]
    order = _shuffled(left, ids, seed, "cluster")
    members: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for index in order:
        members[labels[index]].append(index)
    drawn = [index for found in members.values() for index in found[:per_cluster]]
    small = sum(len(found) < per_cluster for found in members.values())
    missing = per_cluster * len(members) - len(drawn)
    chosen = set(drawn)
    others = [index for index in order if index not in chosen][:missing]
    return drawn + others, Shortfall(small, len(others), missing - len(others))


def hardest(
    candidates: Sequence[int],
    difficulty: Mapping[int, float],
    ids: Sequence[str],
    count: int,
    seed: int,
) -> tuple[list[int], Shortfall]:
    """Return the `count` hardest candidates; equally hard ones in a random order."""
    mixed = _shuffled(candidates, ids, seed, "equally hard")
    chosen = sorted(mixed, key=lambda index: -difficulty[index])[:count]
    return chosen, Shortfall(empty=count - len(chosen))


def held_out(indices: Sequence[int], ids: Sequence[str], share: float, seed: int) -> set[int]:
    """Return the share of a subset that is for choosing, rounded, drawn at random."""
    return set(_shuffled(indices, ids, seed, "split")[: round(share * len(indices))])


def _shuffled(indices: Sequence[int], ids: Sequence[str], seed: int, what: str) -> list[int]:
    return sorted(indices, key=lambda index: draw(seed, what, ids[index]))
