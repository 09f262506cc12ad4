"""Shares of battles: of each model, of each pair, against a baseline, and with length taken out.

A tie is half a win. Against a baseline there are two published forms. WildBench (arXiv 2406.04770)
gives each verdict a reward, 100 for much better, 50 for better, 0 for a tie, and the same negative,
averages it for each baseline and takes the mean of those; its length rule makes a tie of a slight
win whose answer is more than so many characters longer. A length-controlled win rate (AlpacaEval 2,
arXiv 2404.04475) fits P(model wins) = s(theta + phi tanh((len - len of baseline) / sd)) and reports
s(theta), in percent. Ours has no term for how hard a prompt is and no penalty, and intervals are
from resampled prompts. Judgments that hold no answers (Arena-Hard's) have a raw win rate alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aligner.arena.bradley_terry import newton, sigmoid
from aligner.arena.rating import ENDS
from aligner.arena.resampling import resampled, tabulate
from aligner.arena.votes import Floats, Votes
from aligner.errors import DataError
from aligner.evaluation.bootstrap import or_none

REWARD_PER_GRADE = 50.0
SLIGHT = 1.0
"""The grade of a slight win."""


@dataclass(frozen=True)
class Record:
    """What happened to one model; soft preferences and weights make counts fractional."""

    wins: float
    ties: float
    losses: float
    votes: int
    prompts: int
    win_rate: float
    mean_length: float | None


def records(votes: Votes) -> list[Record]:
    """One for each model, in the order of names."""
    found = []
    for model in range(len(votes.models)):
        first, second = votes.a == model, votes.b == model
        score = np.concatenate([votes.outcome[first], 1.0 - votes.outcome[second]])
        weight = np.concatenate([votes.weight[first], votes.weight[second]])
        lengths = np.concatenate([votes.style_a[first, 0], votes.style_b[second, 0]])
        lengths = lengths[~np.isnan(lengths)]
        prompts = np.unique(votes.prompt[first | second])
        found.append(
            Record(
                float(weight[score == 1.0].sum()),
                float(weight[(score > 0.0) & (score < 1.0)].sum()),
                float(weight[score == 0.0].sum()),
                len(score),
                len(prompts),
                float(score @ weight / weight.sum()),
                float(lengths.mean()) if len(lengths) else None,
            )
        )
    return found


def pairs(votes: Votes) -> tuple[Floats, Floats]:
    """(M, M) share of votes that a row's model won against a column's, NaN where they never met,
    and (M, M) how many votes there were."""
    count = len(votes.models)
    key, turned = votes.a * count + votes.b, votes.b * count + votes.a
    size = count * count
    won = np.bincount(key, votes.weight * votes.outcome, size)
    won += np.bincount(turned, votes.weight * (1.0 - votes.outcome), size)
    weight = np.bincount(key, votes.weight, size) + np.bincount(turned, votes.weight, size)
    met = np.bincount(key, minlength=size) + np.bincount(turned, minlength=size)
    share = np.divide(won, weight, out=np.full(size, np.nan), where=weight > 0)
    return share.reshape(count, count), met.reshape(count, count)


def with_length_rule(votes: Votes, margin: float) -> Votes:
    """Slight wins of an answer more than `margin` longer as ties; a much better one stays.

    Raises: DataError where verdicts have no grades, or answers no length.
    """
    if np.isnan(votes.grade).any():
        raise DataError(
            "the length rule is about slight wins, and some verdicts have no grade",
            "give judgments that grade their verdicts (A>B, A>>B)",
        )
    longer = votes.style_a[:, 0] - votes.style_b[:, 0]
    if np.isnan(longer).any():
        raise DataError("some answers have no length", "give rows with their answers")
    slight = (np.abs(votes.grade) <= SLIGHT) & (votes.grade * longer > 0)
    tied = slight & (np.abs(longer) > margin)
    return replace(
        votes,
        outcome=np.where(tied, 0.5, votes.outcome),
        grade=np.where(tied, 0.0, votes.grade),
    )


def rewards(votes: Votes) -> dict[str, dict[str, float]]:
    """For each model its mean reward against each other one, and `mean` of them; empty without
    grades."""
    if np.isnan(votes.grade).any():
        return {}
    found: dict[str, dict[str, float]] = {}
    for model, name in enumerate(votes.models):
        of_model = {}
        for other, other_name in enumerate(votes.models):
            first = (votes.a == model) & (votes.b == other)
            second = (votes.b == model) & (votes.a == other)
            grades = np.concatenate([votes.grade[first], -votes.grade[second]])
            if len(grades):
                of_model[other_name] = REWARD_PER_GRADE * float(grades.mean())
        found[name] = {**of_model, "mean": float(np.mean(list(of_model.values())))}
    return found


def length_controlled(
    votes: Votes, baseline: str, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """For each model that met the baseline its win rate, raw and length-controlled, in percent,
    with their intervals; `controlled` is None where the length of an answer is not known.

    `is_far`: the correction moved it by more than 10 points, and by more than a quarter of the
    room in that direction.
    """
    if baseline not in votes.models:
        raise DataError(f"the baseline {baseline!r} has no vote", "name one of the models")
    found = {}
    for name in votes.models:
        if name != baseline and len(part := votes.among([name, baseline])):
            raw = _raw(part, name, resamples, seed)
            found[name] = raw | _controlled(part, name, raw["raw"], resamples, seed)
    return found


def _raw(votes: Votes, name: str, resamples: int, seed: int) -> dict[str, Any]:
    """The share of the votes that the model won, and its interval."""
    table = tabulate(votes, np.empty((len(votes), 0)), "half", "prompt")
    mine = votes.models.index(name)  # of two, the first of which has the first column
    drawn = [table.total[None]]
    if table.clusters > 1 and resamples:
        drawn += resampled(table, resamples, seed)
    rates = np.concatenate([100.0 * masses[:, 0, mine] / masses.sum((1, 2)) for masses in drawn])
    low, high = np.quantile(rates[1:], ENDS) if len(rates) > 1 else (np.nan, np.nan)
    return {"raw": float(rates[0]), "raw_low": or_none(low), "raw_high": or_none(high)}


def _controlled(votes: Votes, name: str, raw: float, resamples: int, seed: int) -> dict[str, Any]:
    turned = votes.a != votes.models.index(name)
    longer = np.where(turned, -1.0, 1.0) * (votes.style_a[:, 0] - votes.style_b[:, 0])
    if np.isnan(longer).any():
        return {"controlled": None, "low": None, "high": None, "is_far": False}
    spread = float(longer.std())
    covariate = np.tanh(longer / spread) if spread > 0 else np.zeros(len(longer))
    table = tabulate(votes, np.where(turned, -covariate, covariate)[:, None], "half", "prompt")
    sign = 1.0 if votes.models.index(name) == 0 else -1.0
    fitted = newton(table.design, "half", table.total[None], _prior(table.total[None]))
    parts = [fitted[:0]]
    if table.clusters > 1 and resamples:
        for masses in resampled(table, resamples, seed):
            parts.append(newton(table.design, "half", masses, _prior(masses), fitted[0]))
    drawn = np.concatenate(parts)
    rate, rates = (100.0 * sigmoid(sign * (row[:, 0] - row[:, 1])) for row in (fitted, drawn))
    low, high = np.quantile(rates, ENDS) if len(rates) else (np.nan, np.nan)
    moved = float(rate[0]) - raw
    room = 100.0 - raw if moved > 0 else raw
    return {
        "controlled": float(rate[0]),
        "low": or_none(low),
        "high": or_none(high),
        "is_far": abs(moved) > 10.0 and abs(moved) > room / 4.0,
    }


def _prior(masses: Floats) -> Floats:
    """A game against the average player for each model, where one won nothing."""
    return (masses.sum(axis=1) == 0).any(axis=1).astype(np.float64)
