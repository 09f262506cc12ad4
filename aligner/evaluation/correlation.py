"""Pearson's and Spearman's correlation, and Cohen's kappa. All give NaN where they are not
defined."""

from __future__ import annotations

import numpy as np

from aligner.evaluation.bootstrap import Floats, Integers


def pearson(left: Floats, right: Floats) -> float:
    """Linear correlation; not a number where one side does not vary."""
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")
    left, right = left - left.mean(), right - right.mean()
    scale = np.linalg.norm(left) * np.linalg.norm(right)
    return float(np.clip(left @ right / scale, -1.0, 1.0)) if scale > 0 else float("nan")


def spearman(left: Floats, right: Floats) -> float:
    """Pearson's correlation of the ranks; equal values share their mean rank."""
    return pearson(ranks(left), ranks(right))


def ranks(values: Floats) -> Floats:
    """Ranks from 1 on, equal values at their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Floats = (ends - (counts - 1) / 2.0)[places]
    return found


def kappa(left: Integers, right: Integers, weights: Floats, kinds: int) -> float:
    """Agreement above what two judges who choose independently, each with its own shares, would
    reach; 1 is perfect."""
    total = weights.sum()
    if total <= 0:
        return float("nan")
    cells = np.bincount(left * kinds + right, weights, kinds * kinds).reshape(kinds, kinds) / total
    expected = float(cells.sum(axis=1) @ cells.sum(axis=0))
    return (
        float((np.trace(cells) - expected) / (1.0 - expected))
        if expected < 1.0 - 1e-12
        else float("nan")
    )
