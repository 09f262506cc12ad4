"""What a selection chose, in numbers: by model, difficulty and category, against the prompts it
chose from.

`false_loss_rate` is the share of prompts on which a second sample of the target beats the first one
by `k`: nobody is better there, so these are losses by chance, and as large a share of the losses to
others teaches nothing. It is known where the target fought a second sample of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from aligner.arena.selection.contests import Contest
from aligner.arena.selection.rules import Chosen, Dropped, Limits, Selected

Summary = dict[str, Any]
UNKNOWN = "unknown"


def summary_of(selected: Sequence[Selected], limits: Limits, target: str) -> Summary:
    """Everything that a report of a selection shows."""
    chosen = [one for one in selected if isinstance(one, Chosen)]
    contests = [one.contest for one in selected]
    ours = [one.contest for one in chosen]
    reasons = Counter(one.reason for one in selected if isinstance(one, Dropped))
    return {
        "prompts": len(selected),
        "rows": len(chosen),
        "target": target,
        "k": limits.k,
        "dropped": dict(reasons.most_common()),
        "winners": dict(Counter(one.winner for one in chosen).most_common()),
        "losers": dict(Counter(one.loser for one in chosen).most_common()),
        "lost_to": _lost_to(contests, target),
        "inconsistent": sum(not one.consistent for one in chosen),
        "difficulty": {"prompts": _difficulty(contests), "rows": _difficulty(ours)},
        "categories": _categories(contests, ours),
        "lengths": {
            "winners": _mean([len(one.contest.answers[one.winner].text) for one in chosen]),
            "losers": _mean([len(one.contest.answers[one.loser].text) for one in chosen]),
            "target": _mean([len(_text(contest, target)) for contest in contests]),
        },
        "scores": {
            "winners": _mean([_score(one, one.winner) for one in chosen]),
            "losers": _mean([_score(one, one.loser) for one in chosen]),
        },
    }


def false_loss_rate(
    contests: Sequence[Contest], target: str, again: str, k: float
) -> tuple[float | None, int]:
    """The share of prompts on which `again`, a second sample of the target, beats it by `k`, and of
    how many; None of none."""
    margins = [contest.margin(again, target) for contest in contests]
    judged = [margin for margin in margins if margin is not None]
    return _mean([float(margin > 0 and margin >= k) for margin in judged]), len(judged)


def loss_rate(
    contests: Sequence[Contest], target: str, rivals: Sequence[str], k: float
) -> tuple[float | None, int]:
    """The mean over rivals of the share of prompts on which one beats the target by `k`, and how
    many battles that is."""
    lost = []
    for contest in contests:
        margins = [contest.margin(rival, target) for rival in rivals if rival in contest.answers]
        lost += [float(margin > 0 and margin >= k) for margin in margins if margin is not None]
    return _mean(lost), len(lost)


def _lost_to(contests: Sequence[Contest], target: str) -> dict[str, Any]:
    """Rival -> battles with the target, and how many of these it lost by any margin."""
    met: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for contest in contests:
        for name in contest.models:
            margin = contest.margin(name, target) if name != target else None
            if margin is not None:
                met[name] += 1
                lost[name] += margin > 0
    return {name: {"battles": met[name], "lost": lost[name]} for name in sorted(met)}


def _difficulty(contests: Sequence[Contest]) -> float | None:
    return _mean([one.difficulty for one in contests if one.difficulty is not None])


def _categories(contests: Sequence[Contest], ours: Sequence[Contest]) -> dict[str, Any]:
    """Category -> its prompts and rows; none where no prompt has one."""
    of_all, of_rows = _by_category(contests), _by_category(ours)
    if set(of_all) <= {UNKNOWN}:
        return {}
    return {name: {"prompts": count, "rows": of_rows[name]} for name, count in of_all.most_common()}


def _by_category(contests: Sequence[Contest]) -> Counter[str]:
    return Counter(one.item.category or UNKNOWN for one in contests)


def _score(one: Chosen, name: str) -> float | None:
    return one.contest.scores.get(name)


def _text(contest: Contest, name: str) -> str:
    return contest.answers[name].text if name in contest.answers else ""


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None
