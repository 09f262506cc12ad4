"""How far judges agree on the same battles: Cohen's kappa by two, Krippendorff's alpha over all.

A battle's verdict is the sign of the mean lead over its games with that judge: which of the two
models, or a tie. Two judges met on a battle where both judged the same models on the same prompt.
Alpha (nominal; Krippendorff, Content Analysis, section 11.3) is 1 - D_o / D_e: a battle on which m
judges spoke counts with m * (m - 1) ordered pairs of verdicts, each weighted by 1 / (m - 1), and
judges need not have seen the same battles.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from aligner.arena.judgments import Judgments
from aligner.arena.votes import Integers
from aligner.evaluation.bootstrap import or_none
from aligner.evaluation.correlation import kappa

KINDS = 3
"""The one model, a tie, the other model."""


def verdicts(games: Judgments) -> tuple[Integers, Integers, Integers]:
    """Of each battle of each judge: what was judged, by whom, and the verdict from 0 to 2."""
    unit = games.prompt * len(games.models) ** 2 + games.pair
    key, numbers = np.unique(unit * len(games.judges) + games.judge, return_inverse=True)
    lead = np.where(games.is_turned, -games.lead, games.lead)
    mean = np.bincount(numbers, lead, len(key)) / np.maximum(np.bincount(numbers), 1)
    return key // len(games.judges), key % len(games.judges), np.sign(mean).astype(np.int64) + 1


def agreement(games: Judgments) -> dict[str, Any] | None:
    """Kappa of each two judges and alpha of all; None where no two judged the same battle."""
    unit, judge, verdict = verdicts(games)
    rows = []
    for one, two in combinations(range(len(games.judges)), 2):
        left, right = judge == one, judge == two
        _, at_left, at_right = np.intersect1d(unit[left], unit[right], return_indices=True)
        if not len(at_left):
            continue
        said, also_said = verdict[left][at_left], verdict[right][at_right]
        rows.append(
            {
                "judges": [games.judges[one], games.judges[two]],
                "battles": len(at_left),
                "same": float((said == also_said).mean()),
                "kappa": or_none(kappa(said, also_said, np.ones(len(said)), KINDS)),
            }
        )
    return {"pairs": rows, "alpha": or_none(alpha(unit, verdict))} if rows else None


def alpha(units: Integers, values: Integers) -> float:
    """Krippendorff's alpha for names; NaN where all that was said is the same, or nothing can be
    compared."""
    _, numbers = np.unique(units, return_inverse=True)
    kinds = int(values.max()) + 1 if len(values) else 1
    table = np.bincount(numbers * kinds + values, minlength=(numbers.max(initial=-1) + 1) * kinds)
    counts = table.reshape(-1, kinds).astype(float)
    counts = counts[counts.sum(axis=1) > 1]
    spoke = counts.sum(axis=1)
    pairable = spoke.sum()
    observed = ((spoke**2 - (counts**2).sum(axis=1)) / (spoke - 1.0)).sum()
    expected = (pairable**2 - (counts.sum(axis=0) ** 2).sum()) / max(pairable - 1.0, 1.0)
    return float(1.0 - observed / expected) if expected > 0 else float("nan")
