"""`plan: adaptive`: every pair meets on more and more prompts, until it is clear who wins.

Prompts come in an order that the seed decides, so many to a look. After each look, a pair of which
the exact interval of a won prompt's share (of those that are won or lost; ties say nothing about
who is better) does not hold 1/2 has met for the last time. The looks share what may go wrong
(Bonferroni): with a confidence of 0.95, at most one pair in twenty of equals is ever told apart.
Pairs that stay open meet on all prompts. A resumed run takes the same looks again, from the log.

A pair that stopped early was stopped because of what was seen, so its win rate is a little too far
from 1/2; ratings of all pairs together are moved less, and rankings are what the plan is for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from aligner.arena.battle.merged import battle_of
from aligner.arena.battle.outcome import Played, Record
from aligner.arena.battle.plan import Answers, Match, Pair, pairs_of, shuffled
from aligner.arena.battle.play import Table, play
from aligner.arena.battle.recipe import ArenaRecipe
from aligner.arena.battle.sheets import Item
from aligner.arena.records import Game
from aligner.errors import EndpointError
from aligner.events import Notice, tell


@dataclass
class _Standing:
    """How a pair stands: prompts that the first name won, lost, or tied."""

    won: int = 0
    lost: int = 0
    tied: int = 0
    looks: int = 0
    stopped: bool = False
    values: list[float] = field(default_factory=list)

    def add(self, value: float | None) -> None:
        """Count a prompt; None where no reply could be read."""
        if value is not None:
            self.values.append(value)
            self.won += value > 0.5
            self.lost += value < 0.5
            self.tied += value == 0.5

    def to_json(self, pair: Pair) -> Record:
        """Return it for the summary."""
        return {
            "models": list(pair),
            "prompts": len(self.values),
            "win_rate": fmean(self.values) if self.values else None,
            "won": self.won,
            "tied": self.tied,
            "lost": self.lost,
            "looks": self.looks,
            "separated": self.stopped,
        }


def play_adaptively(
    recipe: ArenaRecipe, items: Sequence[Item], answers: Answers, table: Table
) -> tuple[Played, EndpointError | None]:
    """Play until all pairs are separated or have met on all prompts."""
    how, order = recipe.arena.adaptive, shuffled(items, recipe.seed)
    looks = math.ceil(len(order) / how.prompts_per_look)
    allowed = (1.0 - how.confidence) / looks
    standings = {pair: _Standing() for pair in pairs_of(answers)}
    battles: list[list[Game]] = []
    wanted, ended = 0, None
    for look in range(looks):
        start = look * how.prompts_per_look
        part = order[start : start + how.prompts_per_look]
        open_pairs = [pair for pair, standing in standings.items() if not standing.stopped]
        if not open_pairs:
            break
        met = _meetings(open_pairs, part, answers)
        wanted += len(met) * len(table.judges)
        ended = play(met, table, f"look {look + 1} of {looks}")
        for match in met:
            games = list(table.games(match))
            battles += games
            standings[match.pair].add(_value(games, match, recipe))
        if ended is not None:
            break
        _close(standings, open_pairs, allowed, table)
    plan = {
        "looks": looks,
        "confidence": how.confidence,
        "pairs": [standing.to_json(pair) for pair, standing in standings.items()],
    }
    return Played(battles, wanted, plan, "" if ended is None else ended.message), ended


def _meetings(pairs: Iterable[Pair], items: Sequence[Item], answers: Answers) -> list[Match]:
    found = []
    for item in items:
        for a, b in pairs:
            found.append(Match(item, answers[a][item.id], answers[b][item.id]))
    return found


def _value(games: Sequence[Sequence[Game]], match: Match, recipe: ArenaRecipe) -> float | None:
    """Which share of a prompt the first name won, over all judges."""
    won = []
    for battle in games:
        merged = battle_of(battle, recipe.arena.rating)
        if merged is not None:
            won.append({"model_a": 1.0, "model_b": 0.0, "tie": 0.5}[merged.winner])
    return fmean(won) if won else None


def _close(
    standings: dict[Pair, _Standing], pairs: Sequence[Pair], allowed: float, table: Table
) -> None:
    """Close the pairs that are told apart."""
    for pair in pairs:
        standing = standings[pair]
        standing.looks += 1
        standing.stopped = chance(standing.won, standing.lost) <= allowed
        if standing.stopped:
            first = standing.won > standing.lost
            winner, loser = pair if first else pair[::-1]
            text = f"{winner} is above {loser} after {len(standing.values):,} prompts"
            tell(table.on_event, Notice(text))


def chance(won: int, lost: int) -> float:
    """Return how likely equals are to be so far apart: the two-sided tail of a binomial with 1/2,
    at most 1."""
    total, most = won + lost, max(won, lost)
    if not total:
        return 1.0
    log_half = total * math.log(0.5)
    logs = [
        math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1) + log_half
        for count in range(most, total + 1)
    ]
    return min(1.0, 2.0 * math.fsum(math.exp(value) for value in logs))
