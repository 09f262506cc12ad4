"""What sways a judge besides the answers: their order, their length, whose family wrote them, and
chance.

    flip_rate         share of battles whose verdict changes with the order of the answers, a tie
                      that becomes a win included; `reversed` counts wins that become losses alone
    first_seat        share of decisive games that the first answer wins, among battles in both
                      orders, where it is 1/2 without a preference
    score_shift       by how much the score of an answer is higher for being seen first
    longer_wins       share of decisive games that the longer answer wins
    length_lead       by how much that share is above what the records of the two models explain:
                      the covariance within each pair of being longer with winning
    self_preference   the share that models of the judge's family win against others under this
                      judge, less the share under judges of neither family on the same battles
    repeat_agreement  share of games judged twice in one order whose verdict stays

All have intervals by prompt. Where a log does not hold what a number needs, `missing` says what.
That a longer answer wins more often may be right, and a model that always writes more cannot be
told from a better one: so the length that counts as a finding is `length_lead`. A judge that is
noisier than the others draws all shares to 1/2, and so seems fond of a family that is weak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aligner.arena.judgments import Judgments, mean_by_prompt
from aligner.arena.votes import Floats, Integers
from aligner.evaluation.bootstrap import Estimate

NO_ORDERS = "no battle was judged in both orders"


@dataclass
class Bias:
    """Numbers that could be computed, how many cases each is from, and why others could not be."""

    resamples: int
    seed: int
    found: dict[str, Estimate] = field(default_factory=dict)
    cases: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, values: Floats, prompts: Integers, otherwise: str) -> None:
        """The mean of the values, or why there is none."""
        if not len(values):
            self.missing[name] = otherwise
            return
        self.found[name] = mean_by_prompt(values, prompts, self.resamples, self.seed)
        self.cases[name] = len(values)


def add_seats(bias: Bias, games: Judgments) -> None:
    """Flip rate, first-seat share, shift of scores."""
    low, high = games.orders
    lead_low, lead_high = np.sign(games.lead[low]), np.sign(games.lead[high])
    prompts = games.prompt[low]
    bias.add("flip_rate", (lead_low != -lead_high).astype(float), prompts, NO_ORDERS)
    bias.add("reversed", (lead_low * lead_high > 0).astype(float), prompts, NO_ORDERS)
    both = np.concatenate([low, high])
    decisive = both[games.lead[both] != 0]
    why = f"{NO_ORDERS} with a winner" if len(low) else NO_ORDERS
    bias.add("first_seat", (games.lead[decisive] > 0) * 1.0, games.prompt[decisive], why)
    scored = games.is_scored[low] & games.is_scored[high]
    shift = (games.margin[low] + games.margin[high])[scored] / 2.0
    why = "verdicts have no scores" if len(low) else NO_ORDERS
    bias.add("score_shift", shift, prompts[scored], why)


def add_length(bias: Bias, games: Judgments) -> None:
    """How often the longer answer wins, and how much of that the models' records leave open."""
    longer = np.sign(games.length_first - games.length_second)
    kept = ~np.isnan(longer) & (longer != 0) & (games.lead != 0)
    known = games.where(kept)
    sign = longer[kept] * np.where(known.is_turned, -1.0, 1.0)
    won = known.for_low
    all_known = bool((~np.isnan(longer)).any())
    why = "no decisive game has answers of different length" if all_known else "no answer's length"
    right = 0.5 + sign * (won - 0.5)
    bias.add("longer_wins", right, known.prompt, why if all_known else f"{why} is in the log")
    if not len(known):
        bias.missing["length_lead"] = bias.missing["longer_wins"]
        return
    product = _centred(sign, known.pair) * _centred(won, known.pair)
    varies = np.abs(_centred(sign, known.pair)) > 1e-9
    if not varies.any():
        bias.missing["length_lead"] = "of each two models always the same one writes more"
        return
    bias.add("length_lead", product, known.prompt, "")


def _centred(values: Floats, groups: Integers) -> Floats:
    """Values less the mean of their group."""
    _, numbers = np.unique(groups, return_inverse=True)
    means = np.bincount(numbers, values) / np.bincount(numbers)
    centred: Floats = values - means[numbers]
    return centred


def add_repeats(bias: Bias, games: Judgments) -> None:
    """Agreement of the first two games of a battle in one order."""
    key = games.battle * 2 + games.is_turned
    order = np.argsort(key, kind="stable")
    is_start = np.diff(key[order], prepend=-1) > 0
    starts = np.flatnonzero(is_start)
    again = starts[~np.append(is_start, True)[starts + 1]]
    one, two = order[again], order[again + 1]
    same = np.sign(games.lead[one]) == np.sign(games.lead[two])
    why = "no game was judged twice"
    bias.add("repeat_agreement", same.astype(float), games.prompt[one], why)


def add_self_preference(
    bias: Bias, games: Judgments, judge: int, family_of: Mapping[str, str]
) -> None:
    """What the judge gives its own family beyond what others give it."""
    name = "self_preference"
    own = family_of[games.judges[judge]]
    families = np.array([family_of[model] for model in games.models], dtype=object)
    is_own = families == own
    if not is_own.any():
        bias.missing[name] = f"no model is of the judge's family ({own})"
        return
    low, high = np.minimum(games.first, games.second), np.maximum(games.first, games.second)
    kept = is_own[low] != is_own[high]
    if not (kept & (games.judge == judge)).any():
        bias.missing[name] = "no battle is between the judge's family and another one"
        return
    judged_by = np.array([family_of[name] for name in games.judges], dtype=object)[games.judge]
    is_neutral = (judged_by != families[low]) & (judged_by != families[high])
    share = np.where(is_own[low], games.for_low, 1.0 - games.for_low)
    unit = games.prompt * len(games.models) ** 2 + games.pair
    ours = _means(unit, share, kept & (games.judge == judge))
    theirs = _means(unit, share, kept & is_neutral & (games.judge != judge))
    units, at_ours, at_theirs = np.intersect1d(ours[0], theirs[0], return_indices=True)
    excess = ours[1][at_ours] - theirs[1][at_theirs]
    why = "no judge of another family saw these battles, so it cannot be told from quality"
    bias.add(name, excess, units // len(games.models) ** 2, why)


def _means(groups: Integers, values: Floats, kept: Integers) -> tuple[Integers, Floats]:
    names, numbers = np.unique(groups[kept], return_inverse=True)
    return names, np.bincount(numbers, values[kept], len(names)) / np.bincount(numbers)
