"""Whether one strength for each model explains who beats whom: cycles, and how well Bradley-Terry
fits.

Each two models have the share of games that the one won, and an interval for it: Wilson's, at the
level of Bonferroni over all pairs, with the number of games that would give the spread of the share
over prompts. An edge of a cycle is a pair whose interval lies on one side of 1/2; a pair is misfit
where its interval does not hold the share that ratings predict. Two models, or a chain of pairs,
are always fitted exactly, so there is nothing to check.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from aligner.arena.bradley_terry import sigmoid
from aligner.arena.judgments import Judgments
from aligner.arena.rating import POINTS_PER_LOGIT, Settings, rate
from aligner.arena.votes import Floats, Integers, VoteBuilder, Votes
from aligner.errors import DataError
from aligner.evaluation.bootstrap import COVERAGE

MOST_LISTED = 20


@dataclass(frozen=True)
class Pairs:
    """Of each two models that met: games, share that the one whose name sorts first won, and its
    interval."""

    low: Integers
    high: Integers
    games: Integers
    share: Floats
    lower: Floats
    upper: Floats


def pairs_of(games: Judgments) -> Pairs:
    """All pairs with their intervals, whose level is that of all of them together."""
    names, pair = np.unique(games.pair, return_inverse=True)
    count = np.bincount(pair, minlength=len(names))
    share = np.bincount(pair, games.for_low, len(names)) / np.maximum(count, 1)
    size = _effective(games, pair, share, count)
    tail = (1.0 - COVERAGE) / 2.0 / max(len(names), 1)
    z = NormalDist().inv_cdf(1.0 - tail)
    middle = (share + z * z / (2.0 * size)) / (1.0 + z * z / size)
    half = (
        z * np.sqrt(share * (1.0 - share) / size + (z / (2.0 * size)) ** 2) / (1.0 + z * z / size)
    )
    models = len(games.models)
    return Pairs(names // models, names % models, count, share, middle - half, middle + half)


def _effective(games: Judgments, pair: Integers, share: Floats, count: Integers) -> Floats:
    """How many independent games would spread as much as prompts do: at most the games there are,
    and the prompts where nothing varies."""
    key, numbers = np.unique(pair * len(games.prompts) + games.prompt, return_inverse=True)
    off = np.bincount(numbers, games.for_low - share[pair], len(key))
    owner = key // max(len(games.prompts), 1)
    prompts = np.bincount(owner, minlength=len(share))
    variance = np.bincount(owner, off**2, len(share)) / np.maximum(count, 1) ** 2
    variance *= prompts / np.maximum(prompts - 1, 1)
    spread = share * (1.0 - share)
    size = np.divide(spread, variance, out=prompts.astype(float), where=variance > 1e-15)
    return np.clip(size, 1.0, np.maximum(count, 1).astype(float))


def cycles(pairs: Pairs, models: list[str]) -> dict[str, Any]:
    """How many directed 3-cycles have significant edges alone, and the first of them."""
    beats = np.zeros((len(models),) * 2, np.int64)
    up, down = pairs.lower > 0.5, pairs.upper < 0.5
    beats[pairs.low[up], pairs.high[up]] = 1
    beats[pairs.high[down], pairs.low[down]] = 1
    listed: list[list[str]] = []
    for one, two in np.argwhere(beats):
        for three in np.flatnonzero(beats[two] & beats[:, one]):
            if one < min(two, three) and len(listed) < MOST_LISTED:
                listed.append([models[one], models[two], models[three]])
    return {
        "count": int(np.trace(beats @ beats @ beats)) // 3,
        "significant_edges": int(beats.sum()),
        "edges": len(pairs.low),
        "first": listed,
    }


def fit(games: Judgments, pairs: Pairs) -> dict[str, Any] | str:
    """Observed and predicted share of each pair, the worst first; or why there is no fit."""
    present = np.unique(np.concatenate([games.first, games.second]))
    if len(pairs.low) < len(present):
        return "no pair is left over to check: as few pairs as ratings"
    try:
        rated = rate(_votes(games), Settings(resamples=0))
    except DataError as error:
        return error.message
    rating = dict(zip(rated.models, rated.rating / POINTS_PER_LOGIT))
    rows: list[dict[str, Any]] = []
    for place in range(len(pairs.low)):
        low, high = (games.models[end[place]] for end in (pairs.low, pairs.high))
        expected = float(sigmoid(np.array(rating[low] - rating[high])))
        is_misfit = not pairs.lower[place] <= expected <= pairs.upper[place]
        rows.append(
            {
                "models": [low, high],
                "games": int(pairs.games[place]),
                "observed": float(pairs.share[place]),
                "predicted": expected,
                "is_misfit": bool(is_misfit),
            }
        )
    rows.sort(key=lambda row: -abs(row["observed"] - row["predicted"]))
    gaps = np.array([abs(row["observed"] - row["predicted"]) for row in rows])
    weight = np.array([row["games"] for row in rows])
    misfit = sum(row["is_misfit"] for row in rows)
    return {"mean_gap": float(gaps @ weight / weight.sum()), "misfit": misfit, "pairs": rows}


def _votes(games: Judgments) -> Votes:
    builder = VoteBuilder()
    high = np.maximum(games.first, games.second)
    for a, b, prompt, won in zip(
        np.minimum(games.first, games.second), high, games.prompt, games.for_low
    ):
        builder.add(games.models[a], games.models[b], games.prompts[prompt], float(won))
    return builder.votes()
