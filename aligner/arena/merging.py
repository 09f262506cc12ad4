"""From games to votes: what the two orders of a battle say together.

    mean                the margin is the mean over the games of (score of a - score of b); its sign
                        is the verdict, a tie within `tie_margin` (arXiv 2407.10627: the higher
                        score wins; how its two games merge is not said)
    inconsistent_is_tie a tie where the games disagree or one of them is a tie (as MT-Bench does)
    drop_inconsistent   a battle whose games disagree is left out
    votes               each game is a vote of its own, with its seat (as Arena-Hard does)

A battle in which one reply could not be read is left out with all its games: failures go with bad
and with adversarial answers, so counting them as ties would help exactly those. The first three
rules ask for both orders; a battle that was played in one is left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from aligner.arena.votes import UNKNOWN, StyleCounts, VoteBuilder

Merge = Literal["mean", "inconsistent_is_tie", "drop_inconsistent", "votes"]
MERGES: tuple[Merge, ...] = get_args(Merge)

UNREAD = "battles with a reply that could not be read"
ONE_ORDER = "battles that were played in one order alone"
INCONSISTENT = "battles whose two games disagree"


@dataclass(frozen=True, slots=True)
class Played:
    """What merging needs to know of a game. `score_*` are None where the reply could not be
    read."""

    first: str
    second: str
    prompt: str
    score_first: float | None
    score_second: float | None
    category: str = ""
    style_first: StyleCounts = None
    style_second: StyleCounts = None
    is_graded: bool = False
    """Whether `score_first` is a grade from -2 to 2, and `score_second` is 0."""
    judge: str = ""
    is_ruled: bool = False
    """Whether a rule decided it: its scores are on nobody's scale, and no margin makes them a
    tie."""

    def margin(self, a: str) -> float:
        """How much better model `a` scored."""
        assert self.score_first is not None
        assert self.score_second is not None
        lead = self.score_first - self.score_second
        return lead if self.first == a else -lead

    @property
    def styles(self) -> tuple[StyleCounts, StyleCounts]:
        """The style of the first answer and of the second, in the order of names."""
        both = self.style_first, self.style_second
        return both if self.first < self.second else both[::-1]


def add_battle(
    games: Sequence[Played], rule: Merge, tie_margin: float, builder: VoteBuilder
) -> None:
    """Merge the games of a battle, and add what they say, or count why they say nothing."""
    tie_margin = 0.0 if games[0].is_ruled else tie_margin
    if any(game.score_first is None or game.score_second is None for game in games):
        builder.left_out[UNREAD] += 1
        return
    if rule == "votes":
        for game in games:
            _add(builder, [game], game.first, game.second, tie_margin, seat=1.0)
        return
    if len({game.first for game in games}) < 2:
        builder.left_out[ONE_ORDER] += 1
        return
    a, b = sorted((games[0].first, games[0].second))
    verdicts = {_verdict(game.margin(a), tie_margin) for game in games}
    if rule == "drop_inconsistent" and len(verdicts) > 1:
        builder.left_out[INCONSISTENT] += 1
        return
    is_tie = rule == "inconsistent_is_tie" and len(verdicts) > 1
    _add(builder, games, a, b, math.inf if is_tie else tie_margin, seat=0.0)


def _verdict(margin: float, tie_margin: float) -> float:
    """1 where a wins, 0.5 for a tie, 0."""
    return 0.5 if abs(margin) <= tie_margin else float(margin > 0)


def _add(
    builder: VoteBuilder, games: Sequence[Played], a: str, b: str, tie_margin: float, seat: float
) -> None:
    margin = sum(game.margin(a) for game in games) / len(games)
    game = games[0]
    is_tie = math.isinf(tie_margin)
    builder.add(
        a,
        b,
        game.prompt,
        _verdict(margin, tie_margin),
        category=game.category,
        seat=seat,
        grade=(0.0 if is_tie else margin) if game.is_graded else UNKNOWN,
        styles=game.styles if a < b else game.styles[::-1],
    )
