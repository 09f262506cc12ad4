"""Play matches: have judges look at both orders of each, and log whole battles as they come."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from aligner.arena.battle.log import (
    NOTHING,
    GameLog,
    battle_id,
    by_rule,
    game_of,
    rule_of,
    sheets_of,
)
from aligner.arena.battle.plan import Match
from aligner.arena.battle.sheets import BattleJudge, Judged
from aligner.arena.battle.spend import Spend, in_words
from aligner.arena.records import Game
from aligner.errors import EndpointError
from aligner.events import Notice, OnEvent, StageProgress, tell

TICK_S = 2.0
AT_ONCE = 128
"""Battles that a judge gets together."""


@dataclass(frozen=True)
class Table:
    """Where matches are played: judges, the log, and who hears of it. `about`: shard, stage and
    round of every game."""

    judges: Sequence[BattleJudge]
    log: GameLog
    spend: Spend | None = None
    on_event: OnEvent | None = None
    about: Game = NOTHING

    def is_played(self, match: Match) -> bool:
        """Say whether every judge has judged a match."""
        return all(battle_id(match, judge) in self.log for judge in self.judges)

    def games(self, match: Match) -> Iterator[list[Game]]:
        """Yield the two games of a match before each judge who has judged it."""
        for judge in self.judges:
            if games := self.log.games(battle_id(match, judge)):
                yield games


def play(matches: Sequence[Match], table: Table, name: str = "battles") -> EndpointError | None:
    """Have all matches judged that are not in the log, and return what ended it early, if anything
    did. What was judged until then is logged, but for battles of which one game is missing: their
    reply is kept, and is not asked for again.

    Raises: DataError for prompts that a judge cannot judge.
    """
    left = [match for match in matches if not table.is_played(match)]
    done = len(matches) - len(left)
    if left and done:
        tell(table.on_event, Notice(f"resuming {name}: {done:,} of {len(matches):,} are there"))
    for start in range(0, len(left), AT_ONCE):
        part = left[start : start + AT_ONCE]
        for judge in table.judges:
            with _ticking(table, name, done, len(matches)):
                stopped = _judge(part, judge, table)
            if table.spend is not None:
                table.spend.note(f"judge {judge.id}", judge.usage())
            if stopped is not None:
                return EndpointError(f"judge {judge.id}: {stopped.message}", stopped.hint)
        done += len(part)
        tell(table.on_event, StageProgress(name, done, len(matches), _spent(table)))
    return None


def _spent(table: Table) -> str:
    """What all judges have asked and spent since they were opened."""
    return "; ".join(filter(None, (in_words(judge.usage()) for judge in table.judges)))


@contextmanager
def _ticking(table: Table, name: str, done: int, total: int) -> Iterator[None]:
    """Tell what is spent every few seconds meanwhile, from a thread: a judge asks for long."""
    if table.on_event is None:
        yield
        return
    ended, told = threading.Event(), ""

    def tick() -> None:
        nonlocal told
        while not ended.wait(TICK_S):
            with suppress(RuntimeError):  # accounts that grow while they are read
                if (said := _spent(table)) != told:
                    told = said
                    tell(table.on_event, StageProgress(name, done, total, said))

    thread = threading.Thread(target=tick, name="aligner-battles", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _judge(matches: Sequence[Match], judge: BattleJudge, table: Table) -> EndpointError | None:
    """Have a judge look at matches, and log those that are whole."""
    left = [match for match in matches if battle_id(match, judge) not in table.log]
    ruled = [match for match in left if rule_of(match) is not None]
    asked = [match for match in left if rule_of(match) is None]
    games: list[Game] = []
    for match in ruled:
        rule = rule_of(match)
        assert rule is not None, "it was chosen by it"
        verdicts: list[Judged | None] = [by_rule(sheet, rule) for sheet in sheets_of(match)]
        games += _games(match, verdicts, judge, table)
    sheets = [sheet for match in asked for sheet in sheets_of(match)]
    judging = judge.judge(sheets) if sheets else None
    for place, match in enumerate(asked):
        assert judging is not None, "there are sheets"
        games += _games(match, judging.judged[2 * place : 2 * place + 2], judge, table)
    table.log.add(games)
    return None if judging is None else judging.stopped


def _games(
    match: Match, verdicts: Sequence[Judged | None], judge: BattleJudge, table: Table
) -> list[Game]:
    """Return both games of a match, or none where one was not judged."""
    battle, found = battle_id(match, judge), []
    for sheet, judged in zip(sheets_of(match), verdicts, strict=True):
        if judged is None:
            return []
        found.append(game_of(sheet, judged, judge, battle, table.about))
    return found
