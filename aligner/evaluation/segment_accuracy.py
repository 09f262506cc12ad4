"""How a segment reward model ranks pairs by the number of their segments, and by the values in a
third of the answers alone.

The second says where in an answer such a model knows the better one: in the first third before most
of it was read, or only at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from aligner.evaluation.bootstrap import Estimate, Statistic, shares
from aligner.evaluation.groups import Groups, buckets
from aligner.evaluation.pair_scores import DifferentAnswers, Judged

COUNT = "segments"
THIRDS = ("early", "middle", "late")
"""Attributes of the scores of `aligner.reward_models.segment`."""


class SegmentAccuracy:
    """The accuracies of one judgement whose scorer says how many segments answers have."""

    def __init__(self, judged: Judged, answers: DifferentAnswers) -> None:
        self._judged = judged
        self._chosen, self._rejected = answers.chosen, answers.rejected
        counts = judged.attributes[COUNT]
        self._counts = (counts[self._chosen] + counts[self._rejected]) / 2
        self._groups: Groups = buckets(self._counts)

    def statistics(self) -> dict[str, Statistic]:
        """What intervals are asked for."""
        nowhere = np.zeros(len(self._counts), dtype=np.int64)
        found = {name: shares(self._wins(name), nowhere, 1) for name in THIRDS}
        of_counts = shares(self._judged.wins, self._groups.of, len(self._groups.names))
        return {**found, COUNT: of_counts}

    def record(self, found: dict[str, list[Estimate]]) -> dict[str, Any]:
        """Plain values: the accuracy of pairs by their mean number of segments, and of each
        third."""
        return {
            "mean": float(self._judged.attributes[COUNT].mean()),
            "buckets": [self._bucket(place, one) for place, one in enumerate(found[COUNT])],
            "thirds": [{"name": name, "accuracy": asdict(found[name][0])} for name in THIRDS],
        }

    def _bucket(self, place: int, accuracy: Estimate) -> dict[str, Any]:
        inside = self._counts[self._groups.of == place]
        return {
            "from": float(inside.min()),
            "to": float(inside.max()),
            "pairs": len(inside),
            "accuracy": asdict(accuracy),
        }

    def _wins(self, name: str) -> Any:
        values = self._judged.attributes[name]
        return (np.sign(values[self._chosen] - values[self._rejected]) + 1.0) / 2.0


def segment_accuracy(judged: Judged, answers: DifferentAnswers) -> SegmentAccuracy | None:
    """Return the accuracies of a judgement, or None where its scorer knows no segments."""
    return SegmentAccuracy(judged, answers) if COUNT in judged.attributes else None


def spans(record: dict[str, Any]) -> Sequence[tuple[str, dict[str, Any], int | None]]:
    """The rows of a record as (name, accuracy, pairs)."""
    found: list[tuple[str, dict[str, Any], int | None]] = []
    for row in record["buckets"]:
        low, high = f"{row['from']:g}", f"{row['to']:g}"
        name = low if low == high else f"{low} to {high}"
        found.append((f"{name} segment{'' if name == '1' else 's'}", row["accuracy"], row["pairs"]))
    return [*found, *((f"{row['name']} third", row["accuracy"], None) for row in record["thirds"])]
