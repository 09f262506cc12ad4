"""`plan: bracket`: single elimination. Contestants are seeded in the order of the recipe, the best
first; where their number is no power of two, the first have a bye.

A match is on all prompts, and the contestant with the higher win rate (ties half, over all judges)
advances. Where it is exactly 1/2, or no reply could be read, the better seed does, which is said. A
bracket finds a winner with few battles, and ranks nobody else well: two of the best may meet first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aligner.arena.battle.merged import battle_of
from aligner.arena.battle.outcome import Played, Record
from aligner.arena.battle.plan import Answers, Match, matches
from aligner.arena.battle.play import Table, play
from aligner.arena.battle.recipe import ArenaRecipe
from aligner.arena.battle.sheets import Item
from aligner.arena.battle.win_rate import win_rate_of
from aligner.arena.records import Game
from aligner.errors import EndpointError
from aligner.events import Notice, tell

BYE = None


@dataclass(frozen=True)
class _Duel:
    """Two of a round, the better seed first, and their matches."""

    better: str
    worse: str
    matches: list[Match]


def seeded(names: Sequence[str]) -> list[str | None]:
    """Return the contestants in the order of the bracket: neighbours meet, and the first two could
    only meet at the end. None is a bye."""
    size = 1
    while size < len(names):
        size *= 2
    order = [1]
    while len(order) < size:
        doubled = 2 * len(order) + 1
        order = [seat for one in order for seat in (one, doubled - one)]
    return [names[seat - 1] if seat <= len(names) else BYE for seat in order]


def play_bracket(
    recipe: ArenaRecipe, items: Sequence[Item], answers: Answers, table: Table
) -> tuple[Played, EndpointError | None]:
    """Play all rounds."""
    names = [one.name for one in recipe.arena.contestants]
    rank = {name: place for place, name in enumerate(names)}
    seats, battles, rounds = seeded(names), list[Sequence[Game]](), list[list[Record]]()
    wanted = 0
    while len(seats) > 1:
        duels = []
        for one, other in zip(seats[::2], seats[1::2]):
            if one is not BYE and other is not BYE:
                better, worse = sorted((one, other), key=rank.__getitem__)
                pair = (min(one, other), max(one, other))
                duels.append(_Duel(better, worse, matches(items, answers, [pair], recipe.seed)))
        met = [match for duel in duels for match in duel.matches]
        wanted += len(met) * len(table.judges)
        ended = play(met, table, f"round {len(rounds) + 1} of the bracket")
        battles += [games for match in met for games in table.games(match)]
        if ended is not None:
            return Played(battles, wanted, {"rounds": rounds}, ended.message), ended
        results = {duel.better: _result(duel, recipe, table) for duel in duels}
        rounds.append(list(results.values()))
        seats = [_winner(one, other, rank, results) for one, other in zip(seats[::2], seats[1::2])]
    return Played(battles, wanted, {"rounds": rounds, "winner": seats[0]}), None


def _winner(
    one: str | None, other: str | None, rank: dict[str, int], results: dict[str, Record]
) -> str | None:
    if one is BYE or other is BYE:
        return one if other is BYE else other
    return str(results[min(one, other, key=rank.__getitem__)]["winner"])


def _result(duel: _Duel, recipe: ArenaRecipe, table: Table) -> Record:
    """Who advances, and by how much."""
    how = recipe.arena.rating
    games = [games for match in duel.matches for games in table.games(match)]
    merged = [battle for one in games if (battle := battle_of(one, how)) is not None]
    rate = win_rate_of(merged, duel.better, how.resamples, recipe.seed)
    by_seed = rate.rate is None or rate.rate == 0.5
    winner = duel.better if by_seed or (rate.rate or 0.0) > 0.5 else duel.worse
    if by_seed:
        text = f"{duel.better} and {duel.worse} are even: the better seed, {winner}, advances"
        tell(table.on_event, Notice(text))
    found = {"models": [duel.better, duel.worse], "winner": winner, "by_seed": by_seed}
    return {**found, "win_rate": rate.to_json()}
