"""K-means: points into clusters, by seeds of k-means++ and Lloyd's iterations.

Chance is a hash of the seed, so the same points in the same order give the same clusters. A cluster
that loses all its points takes the point that lies farthest from its own centre.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aligner.acquisition.picks import draw, k_means_seeding

Array = np.ndarray

STARTS, ITERATIONS = 3, 50
CHUNK = 8192
"""Points whose distances to all centres are in memory at a time."""

OnProgress = Callable[[int, int], None]


def k_means(
    points: Array, clusters: int, seed: int = 0, on_progress: OnProgress | None = None
) -> Array:
    """Return the cluster of each point, shape (N,), of the tightest of `STARTS` runs. `points`: (N,
    D). Clusters are numbered by the order of their first points."""
    assert 1 <= clusters <= len(points), f"{clusters} clusters of {len(points)} points"
    best, least = np.zeros(len(points), dtype=np.int64), np.inf
    for start in range(STARTS):
        labels, spread = _one_run(points, clusters, seed, start)
        if spread < least:
            best, least = labels, spread
        if on_progress is not None:
            on_progress(start + 1, STARTS)
    _, starts, by_point = np.unique(best, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(starts))[by_point]


def _one_run(points: Array, clusters: int, seed: int, start: int) -> tuple[Array, float]:
    """Labels, and the sum of all squared distances to the centres."""
    first = int(draw(seed, "clusters", str(start)) * len(points))
    none = np.zeros((0, points.shape[1]), dtype=points.dtype)
    picked = k_means_seeding(points, clusters, none, first, seed * STARTS + start)
    centres = points[picked].astype(np.float32)
    labels, spread = np.full(len(points), -1), np.inf
    for _ in range(ITERATIONS):
        nearest, distances = _assigned(points, centres)
        _fill_empty(nearest, distances, clusters)
        spread = float(distances.sum(dtype=np.float64))
        if (nearest == labels).all():
            break
        labels = nearest
        centres = _means(points, labels, clusters)
    return labels, spread


def _assigned(points: Array, centres: Array) -> tuple[Array, Array]:
    """The nearest centre of each point, and the squared distance to it less the point's own
    length."""
    lengths = (centres**2).sum(axis=1)
    nearest, distances = [], []
    for start in range(0, len(points), CHUNK):
        squared = lengths - 2.0 * (points[start : start + CHUNK] @ centres.T)
        nearest.append(squared.argmin(axis=1))
        distances.append(squared.min(axis=1))
    own = np.einsum("nd,nd->n", points, points)
    return np.concatenate(nearest), np.concatenate(distances) + own


def _fill_empty(labels: Array, distances: Array, clusters: int) -> None:
    """Give each cluster without a point the farthest one of a cluster that has more than one."""
    counts = np.bincount(labels, minlength=clusters)
    farthest = iter(np.argsort(-distances, kind="stable"))
    for empty in np.flatnonzero(counts == 0):
        point = next(point for point in farthest if counts[labels[point]] > 1)
        counts[labels[point]] -= 1
        labels[point] = empty
        counts[empty] = 1


def _means(points: Array, labels: Array, clusters: int) -> Array:
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(clusters))
    sums = np.add.reduceat(points[order], starts, axis=0)
    return sums / np.bincount(labels, minlength=clusters)[:, None].astype(np.float32)
