"""The kind `ensemble`: several scorers whose opinions become one.

    kind: ensemble
    members: [runs/rm-seed0, runs/rm-seed1, skywork-v2-qwen3-0.6b]
    combine: lower_bound        # mean | min | lower_bound: mean - spread_weight * standard
                                deviation over the members
    spread_weight: 1.0
    standardize: true

A policy that is trained against one reward model finds its mistakes; members that differ (in seed,
data or kind) rarely make the same ones. `min` and `lower_bound` believe a score only as far as the
members agree on it. Standard deviations are those of the members themselves (n, not n - 1): so with
two members and a weight of 1 the lower bound is the worse one, and a better score never lowers it.
`attributes` hold what each member said, under its name, and `spread`, the standard deviation over
the members.

Members on different scales need `standardize`: of every score the mean of that member's scores over
the rows of the call is taken off, and the rest is divided by their standard deviation. (A reward
means something only up to a constant; without that, `min` would always follow the member with the
lower one, and `spread` would be their distance.) So the scores depend on which rows are scored
together: only those of one call are comparable, and a call needs members that tell its rows apart.
A member that gives them all the same score has no scale to be brought to, and that is a DataError
and no guess.

Comparisons. An ensemble that holds a member which compares answers compares them too. Each member
gives a probability that the first answer is better (a scorer of single answers by the sigmoid of
its difference), and with p the mean, `mean` is p; `min` is that of the least certain member, the
one nearest to 0.5, and 0.5 where members disagree on which answer is better; `lower_bound` moves p
towards 0.5 by `spread_weight` standard deviations, at most onto it. All three are the same
whichever answer comes first. Right answers reach the members that score, and not those that
compare.

All members are loaded at once. Not here: weights for members (name one ensemble as a member of
another), and training.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aligner.errors import DataError, RecipeError

from .base import (
    UNBOUNDED,
    Comparer,
    Composed,
    Preferences,
    Prompt,
    Range,
    Scorer,
    Scores,
    check_lengths,
    preferences,
    sigmoid,
)
from .card import Card, range_of
from .catalogue import load_scorer, members_of
from .judge_base import JudgeBase

SPREAD = "spread"
SAME = 1e-9
"""Scores that differ by less than this share of their size are the same."""


class NoScale(DataError):
    """A member gives all rows of a call the same score, so that it cannot be brought to one scale
    with others."""


Combine = Callable[[Sequence[float], float], float]


def _mean(values: Sequence[float], weight: float) -> float:
    return statistics.fmean(values)


SCORES: dict[str, Combine] = {
    "mean": _mean,
    "min": lambda values, weight: min(values),
    "lower_bound": lambda values, weight: statistics.fmean(values) - weight * spread(values),
}
"""Members' scores of one answer, and `spread_weight` -> the score."""


def _least_certain(chances: Sequence[float], weight: float) -> float:
    agree = all(chance >= 0.5 for chance in chances) or all(chance <= 0.5 for chance in chances)
    return min(chances, key=lambda chance: abs(chance - 0.5)) if agree else 0.5


def _shrunk(chances: Sequence[float], weight: float) -> float:
    margin = statistics.fmean(chances) - 0.5
    return 0.5 + math.copysign(max(0.0, abs(margin) - weight * spread(chances)), margin)


CHANCES: dict[str, Combine] = {"mean": _mean, "min": _least_certain, "lower_bound": _shrunk}
"""Members' probabilities that the first answer is better, and `spread_weight` -> the
probability."""


def spread(values: Sequence[float]) -> float:
    """Standard deviation of these values; 0 for a single one."""
    return statistics.pstdev(values)


class Ensemble:
    """Scores with each of its members and combines what they say."""

    def __init__(self, card: Card, members: Sequence[Scorer]) -> None:
        assert members, "a card without members is refused when it is read"
        self.card = card
        self.members = list(members)
        names = [member.name for member in members]
        are_distinct = len({*names, SPREAD}) == len(names) + 1
        self.names = names if are_distinct else list(card.members)

    @property
    def name(self) -> str:
        """The name of its card."""
        return self.card.name

    @property
    def range(self) -> Range:
        """What follows from the members' ranges; none once they are brought to one scale."""
        if self.card.range is not None:
            return range_of(self.card)
        if self.card.standardize:
            return UNBOUNDED
        return _range(self.card, [member.range for member in self.members])

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        """Score with every member, and combine."""
        check_lengths(prompts, completions, references)
        said = [member.score(prompts, completions, references) for member in self.members]
        columns = [self._to_scale(found, name) for found, name in zip(said, self.names)]
        rows = list(zip(*columns))
        attributes = {name: list(found) for name, found in zip(self.names, said)}
        if len(self.members) > 1:
            attributes[SPREAD] = [spread(row) for row in rows]
        combine = SCORES[self.card.combine]
        remarks = _joined([found.remarks for found in said], self.names)
        return Scores([combine(row, self.card.spread_weight) for row in rows], attributes, remarks)

    def fingerprint(self) -> str:
        """The members' fingerprints, and how they are combined."""
        how = [self.card.combine, self.card.spread_weight, self.card.standardize]
        text = json.dumps([how, [member.fingerprint() for member in self.members]])
        return f"ensemble:{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _to_scale(self, scores: Sequence[float], name: str) -> list[float]:
        """One member's scores, with a mean of 0 and a spread of 1 where the card says so."""
        if not self.card.standardize or not scores:
            return list(scores)
        size = spread(scores)
        if size <= SAME * max(map(abs, scores)):
            rows = "the only row" if len(scores) == 1 else f"all {len(scores)} rows"
            raise NoScale(
                f"{self.name}: {name} gives {rows} the same score, "
                f"{scores[0]:g}, so it has no spread "
                "to be divided by",
                "Score more rows in one call, or set `standardize: false` for members that are on "
                "one scale already.",
            )
        middle = statistics.fmean(scores)
        return [(score - middle) / size for score in scores]


class ComparingEnsemble(Ensemble):
    """An ensemble with a member that compares answers."""

    takes_references = True

    def prefer(
        self,
        prompts: Sequence[Prompt],
        first: Sequence[str],
        second: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Preferences:
        """Ask every member which answer is better, and combine the probabilities."""
        check_lengths(prompts, first, references)
        said = [
            self._prefer(*pair, prompts, first, second, references)
            for pair in zip(self.members, self.names)
        ]
        combine = CHANCES[self.card.combine]
        flips = sorted({row for found in said for row in found.flips})
        remarks = _joined([found.remarks for found in said], self.names)
        return Preferences(
            [combine(row, self.card.spread_weight) for row in zip(*said)], flips, remarks
        )

    def _prefer(
        self,
        member: Scorer,
        name: str,
        prompts: Sequence[Prompt],
        first: Sequence[str],
        second: Sequence[str],
        references: Sequence[str | None] | None,
    ) -> Preferences:
        if isinstance(member, Comparer):
            return preferences(member, prompts, first, second, references)
        twice = None if references is None else [*references, *references]
        found = member.score([*prompts, *prompts], [*first, *second], twice)
        scores, count = self._to_scale(found, name), len(prompts)
        of_first = {row: text for row, text in found.remarks.items() if row < count}
        of_second = {row - count: text for row, text in found.remarks.items() if row >= count}
        return Preferences(
            [sigmoid(a - b) for a, b in zip(scores[:count], scores[count:])],
            remarks={**of_second, **of_first},
        )


def make(card: Card) -> Scorer:
    """The scorer of a card of the kind `ensemble`, with its members loaded."""
    if len(card.members) < 2 and card.combine == "lower_bound":
        raise RecipeError(
            f"{card.name}: lower_bound needs two members or more, found {len(card.members)}",
            "add members, or set `combine: mean`",
        )
    twice = sorted({member for member in card.members if card.members.count(member) > 1})
    if twice:
        raise RecipeError(f"{card.name} names the member {twice[0]} twice", "name each member once")
    refuse_cycles(card)
    trusted = card.trust_remote_code
    members = [load_scorer(member, trust_remote_code=trusted) for member in card.members]
    kind = (
        ComparingEnsemble if any(isinstance(member, Comparer) for member in members) else Ensemble
    )
    return kind(card, members)


def leaves(scorer: Scorer) -> Iterator[Scorer]:
    """The scorer itself, or the members of an ensemble or a tournament down to those that have
    none."""
    if not isinstance(scorer, Composed):
        yield scorer
        return
    for member in scorer.members:
        yield from leaves(member)


def restore_budget(scorer: Scorer, path: Path, what: str = "") -> None:
    """Let the budgets of judges, also of those in an ensemble, continue when the program that
    writes `path` is started again.

    Call it before the first question. With another scorer, or another `what` (the data, say),
    budgets start from zero.
    """
    text = f"{path.expanduser().resolve()} {scorer.fingerprint()} {what}"
    account = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
    for judge in leaves(scorer):
        if isinstance(judge, JudgeBase):
            judge.account = f"output:{account}"


def scored_together(card: Card) -> bool:
    """Whether a score depends on all the rows of its call, and not only on those of its prompt."""
    return card.standardize or any(map(scored_together, members_of(card)))


def refuse_cycles(card: Card, above: tuple[Card, ...] = ()) -> None:
    """Follow the members' cards down; one that stands above itself would be loaded for ever.

    Raises: RecipeError for such a one, and for a member that there is not. A card without members
    passes.
    """
    # a path as itself, however it was written
    members = [os.path.realpath(name) if Path(name).exists() else name for name in card.members]
    placed = card.model_copy(update={"members": members})
    if placed in above:
        names = " -> ".join([*(outer.name for outer in above[above.index(placed) :]), card.name])
        raise RecipeError(
            f"the {card.kind} {card.name} is a member of itself: {names}",
            "take it out of `members`",
        )
    for inner in members_of(card):
        if inner.members:
            refuse_cycles(inner, (*above, placed))


def _range(card: Card, ranges: Sequence[Range]) -> Range:
    """Bounds that no combined score leaves; those of `lower_bound` are not always reached."""
    lows, highs = [low for low, _ in ranges], [high for _, high in ranges]
    if card.combine == "min":
        return min(lows), min(highs)
    low, high = statistics.fmean(lows), statistics.fmean(highs)
    if card.combine == "lower_bound" and card.spread_weight:
        if not all(map(math.isfinite, (*lows, *highs))):
            return -math.inf, high
        # Values between two bounds have at most half their distance as standard deviation
        # (Popoviciu).
        widest = (max(highs) - min(lows)) / 2.0
        low -= card.spread_weight * widest
    return low, high


def _joined(remarks: Sequence[dict[int, str]], names: Sequence[str]) -> dict[int, str]:
    """Each row's remarks, with the name of the member that made them."""
    rows = sorted({row for said in remarks for row in said})
    joined = {}
    for row in rows:
        parts = [f"{name}: {said[row]}" for name, said in zip(names, remarks) if row in said]
        joined[row] = "; ".join(parts)
    return joined
