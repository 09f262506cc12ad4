"""Which rows battles give: the selection rules of Arena Learning (arXiv 2407.10627, section 3.3).

    sft      a prompt that the target lost, with the answer of the best of those that beat it
    pairs    a prompt's best answer and its worst one, for DPO and for reward models

The paper keeps a prompt where the winner's margin over the target is at least K; which of several
winners is taken, and how a prompt gives a pair, it does not say. Here it is the one with the best
mean score over all its battles, and one row for each prompt, which fits the paper's counts.

More than the paper asks: a winner's own score must be good (a loss with 1 against 3 has a margin,
too), its answer whole and free of loops, and its licence such that it may be trained on. Such
limits say who may win; K, the score, consistency and the majority are asked of the winner and the
loser that were found, so that a larger K never gives more rows. Equal scores go to the name that
sorts first. A tie is never a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

from aligner.arena.selection.contests import Contest
from aligner.arena.selection.loops import is_looping

For = Literal["sft", "dpo", "reward"]
Scope = Literal["any", "involves_target", "target_loses"]

NOT_MET = "no battle of the target could be judged"
NOT_LOST = "the target lost to nobody"
MARGIN = "margin below k"
SCORE = "the winner's score is too low"
INCONSISTENT = "the winner depends on the order"
MINORITY = "the loser lost to no more than half of the others"
NOBODY = "no winner whose answer may be trained on"
NO_PAIR = "no two answers that differ in score"
TARGET_NOT_IN = "the target is neither the best nor the worst"
LENGTH = "the winner's answer is too much longer"
VERIFIER = "the verifier does not accept the winner's answer"


@dataclass(frozen=True)
class Limits:
    """What a row must pass.

    `k`: least margin of the winner, in points of the judge. `min_winner_score`: of its mean score.
    `scope`: which pairs. `max_length_ratio`: how many times as long as the other answer that of the
    winner may be, in characters. `barred`: models whose answers must not be trained on. `rivals`:
    those whose battles count; all but the target where it is None. `majority_only`: the loser lost
    to more than half of those that it met; one loss alone is often the judge's noise.
    """

    k: float
    min_winner_score: float | None = None
    consistent_only: bool = False
    scope: Scope = "any"
    max_length_ratio: float | None = None
    barred: frozenset[str] = frozenset()
    rivals: frozenset[str] | None = None
    majority_only: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """A row: whose answer is learned, whose is the other, and by how much the first was better."""

    contest: Contest
    winner: str
    loser: str
    margin: float
    consistent: bool


@dataclass(frozen=True, slots=True)
class Dropped:
    """A prompt that gives no row, and why."""

    contest: Contest
    reason: str


Selected = Chosen | Dropped
Accepts = Callable[[Contest, str], bool]
"""Whether a verifier accepts the answer of a model."""


@dataclass(frozen=True)
class Rules:
    """The rules of one selection. `target`: the model that is to be trained."""

    target: str
    limits: Limits
    accepts: Accepts = field(default=lambda contest, winner: True)

    def sft(self, contest: Contest) -> Selected:
        """The answer that the target should have given, or why there is none."""
        known = {name: contest.margin(name, self.target) for name in self._rivals(contest)}
        judged = {name: margin for name, margin in known.items() if margin is not None}
        if not judged:
            return Dropped(contest, NOT_MET)
        lost_to = [name for name, margin in judged.items() if margin > 0]
        if not lost_to:
            return Dropped(contest, NOT_LOST)
        winners = [name for name in lost_to if self._may_be_learned(contest, name)]
        if not winners:
            return Dropped(contest, NOBODY)
        winner = _best(contest, winners)
        return self._checked(Chosen(contest, winner, self.target, judged[winner], True))

    def pair(self, contest: Contest) -> Selected:
        """A better and a worse answer, or why there are none."""
        if self.limits.scope == "target_loses":
            found = self.sft(contest)
            usable = isinstance(found, Dropped) or contest.answers[self.target].text.strip()
            return found if usable else Dropped(contest, NO_PAIR)
        ranked = self._ranked(contest)
        winners = [name for name in ranked if self._may_be_learned(contest, name)]
        if len(ranked) < 2 or not winners:
            return Dropped(contest, NO_PAIR if len(ranked) < 2 else NOBODY)
        best, worst = winners[0], ranked[-1]
        if self.limits.scope == "involves_target" and self.target not in (best, worst):
            return Dropped(contest, TARGET_NOT_IN)
        margin = contest.margin(best, worst)
        if best == worst or margin is None or margin <= 0:
            return Dropped(contest, NO_PAIR)
        return self._checked(Chosen(contest, best, worst, margin, True))

    def learnable(self, contest: Contest) -> list[str]:
        """Return the rivals whose answers may be learned, the best first."""
        names = [name for name in self._rivals(contest) if self._may_be_learned(contest, name)]
        return sorted(names, key=lambda name: _order(contest, name))

    def _checked(self, chosen: Chosen) -> Selected:
        contest, limits = chosen.contest, self.limits
        winner, loser = chosen.winner, chosen.loser
        consistent = contest.is_consistent(winner, loser)
        if chosen.margin < limits.k:
            return Dropped(contest, MARGIN)
        least = limits.min_winner_score
        if least is not None and contest.scores.get(winner, least) < least:
            return Dropped(contest, SCORE)
        if limits.consistent_only and not consistent:
            return Dropped(contest, INCONSISTENT)
        if limits.majority_only and not self._is_beaten_by_most(contest, loser):
            return Dropped(contest, MINORITY)
        if limits.max_length_ratio is not None:
            long, other = (len(contest.answers[name].text) for name in (winner, loser))
            if long > limits.max_length_ratio * max(1, other):
                return Dropped(contest, LENGTH)
        if not self.accepts(contest, winner):
            return Dropped(contest, VERIFIER)
        return Chosen(contest, winner, loser, chosen.margin, consistent)

    def _is_beaten_by_most(self, contest: Contest, name: str) -> bool:
        """Whether more than half of those who met a model beat it, by any margin."""
        others = [other for other in (*self._rivals(contest), self.target) if other != name]
        margins = (contest.margin(other, name) for other in others)
        judged = [margin for margin in margins if margin is not None]
        return 2 * sum(margin > 0 for margin in judged) > len(judged)

    def _rivals(self, contest: Contest) -> list[str]:
        rivals = self.limits.rivals
        models = [name for name in contest.models if name != self.target]
        return models if rivals is None else [name for name in models if name in rivals]

    def _ranked(self, contest: Contest) -> list[str]:
        """Everybody with a score and an answer, the best first."""
        names = [*self._rivals(contest), self.target]
        usable = [
            name
            for name in names
            if name in contest.scores
            and contest.answers[name].text.strip()
            and name not in self.limits.barred
        ]
        return sorted(usable, key=lambda name: _order(contest, name))

    def _may_be_learned(self, contest: Contest, name: str) -> bool:
        answer = contest.answers[name]
        if name in self.limits.barred or answer.is_cut or not answer.text.strip():
            return False
        return not is_looping(answer.text)


def _best(contest: Contest, names: Collection[str]) -> str:
    return min(names, key=lambda name: _order(contest, name))


def _order(contest: Contest, name: str) -> tuple[float, str]:
    """What sorts the best by score first, then by name."""
    return -contest.scores.get(name, float("-inf")), name
