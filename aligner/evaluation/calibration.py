"""Calibration: is a scorer right as often as it is sure? Pairs come with the chosen answer first,
so what counts is confidence: the larger of the probabilities of the two answers, from 0.5 on, in
bins of equal width."""

from __future__ import annotations

from typing import Any

import numpy as np

from aligner.evaluation.bootstrap import Floats, Integers, Statistic
from aligner.evaluation.pair_scores import Judged

BINS = 10


def _confidence(judged: Judged) -> tuple[Floats, Integers]:
    """How sure it is of each pair, from 0.5 to 1, and the bin of that."""
    sure = np.maximum(judged.probabilities, 1.0 - judged.probabilities)
    edges = np.linspace(0.5, 1.0, BINS + 1)
    return sure, np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, BINS - 1).astype(
        np.int64
    )


def calibration_error(judged: Judged) -> Statistic:
    """Expected calibration error: distance of accuracy and confidence in each bin, averaged over
    pairs."""
    (sure, bins), wins = _confidence(judged), judged.wins

    def statistic(weights: Floats) -> Floats:
        return np.array(
            [np.abs(np.bincount(bins, weights * (sure - wins), BINS)).sum() / weights.sum()]
        )

    return statistic


def calibration_curve(judged: Judged) -> list[dict[str, Any]]:
    """The bins that hold pairs: how many, how sure it is on average, and how often right."""
    (sure, bins), wins = _confidence(judged), judged.wins
    edges = np.linspace(0.5, 1.0, BINS + 1).round(6).tolist()
    curve = []
    for number in np.unique(bins):
        inside = bins == number
        curve.append(
            {
                "from": edges[number],
                "to": edges[number + 1],
                "pairs": int(inside.sum()),
                "confidence": float(sure[inside].mean()),
                "accuracy": float(wins[inside].mean()),
            }
        )
    return curve
