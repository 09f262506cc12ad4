"""The log of a run: one line for each game, both games of a battle in one write, nothing ever
changed.

    battle_id    of the prompt, both answers with their models, and the judge with what decides its
                 verdicts: what was judged is known by what it is, whatever run or plan asks
    game_id      of the battle and of the answer that was shown first

A battle counts once both of its games are there. Where an answer is empty, or both are the same,
nobody is asked: the empty one loses, the same ones tie, and `decoding` names the rule. The scores
of such games are on nobody's scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from aligner.arena.battle.plan import Match
from aligner.arena.battle.prompts import digest_of
from aligner.arena.battle.sheets import Answer, BattleJudge, Judged, Sheet
from aligner.arena.records import RULE, Game, Style, append, style_of
from aligner.errors import DataError
from aligner.runs.environment import now

GAMES, BATTLES, SUMMARY = "games.jsonl", "battles.jsonl", "summary.json"
DIGITS = 24

Rule = Literal["identical", "empty"]
LOST, TIED, WON = 1.0, 5.5, 10.0
"""Scores of games that a rule decides."""


def battle_id(match: Match, judge: BattleJudge) -> str:
    """Return the id of a match before a judge."""
    item = match.item
    answers = [[one.model, one.sha] for one in (match.a, match.b)]
    asked = [item.id, digest_of(item.prompt), item.reference]
    return _digest([asked, answers, judge.id, judge.rev, judge.template_sha])


def game_id(battle: str, first: str) -> str:
    """Return the id of the game in which the answer of `first` is shown first."""
    return _digest([battle, first])


def sheets_of(match: Match) -> tuple[Sheet, Sheet]:
    """Return both games of a match."""
    return Sheet(match.item, match.a, match.b), Sheet(match.item, match.b, match.a)


def rule_of(match: Match) -> Rule | None:
    """Return what decides a match without a judge."""
    if match.a.text.strip() == match.b.text.strip():
        return "identical"
    return "empty" if not (match.a.text.strip() and match.b.text.strip()) else None


def by_rule(sheet: Sheet, rule: Rule) -> Judged:
    """Return what the rule says of a game."""
    scores = (TIED, TIED)
    if rule == "empty":
        scores = (WON, LOST) if sheet.first.text.strip() else (LOST, WON)
    return Judged("ok", *scores, decoding={RULE: rule})


def game_of(sheet: Sheet, judged: Judged, judge: BattleJudge, battle: str, about: Game) -> Game:
    """Return the record of a game. `about`: shard, stage and round of it."""
    item, first, second = sheet.item, sheet.first, sheet.second
    return replace(
        about,
        game_id=game_id(battle, first.model),
        battle_id=battle,
        prompt_id=item.id,
        model_first=first.model,
        model_second=second.model,
        judge_id=judge.id,
        parse_status=judged.parse_status,
        score_first=judged.score_first,
        score_second=judged.score_second,
        raw_text=judged.raw_text,
        answer_first_sha=first.sha,
        answer_second_sha=second.sha,
        judge_rev=judge.rev,
        prompt_template_sha=judge.template_sha,
        decoding=_decoding(judged, first, second),
        cache_hit=judged.cache_hit,
        tokens_in=judged.tokens_in,
        tokens_out=judged.tokens_out,
        latency_ms=judged.latency_ms,
        usd=judged.usd,
        ts=now(),
        attempt=judged.attempt,
        category=item.category,
        style_first=style_of(first.text),
        style_second=style_of(second.text),
    )


def _decoding(judged: Judged, first: Answer, second: Answer) -> dict[str, Any]:
    cut = [seat for seat, one in (("first", first), ("second", second)) if one.is_cut]
    return {**judged.decoding, **({"cut": cut} if cut else {})}


NOTHING = Game("", "", "", "", "", "", "ok")
"""A record that says nothing yet; `game_of` fills it in."""


class GameLog:
    """The games of a file, and those added since; texts of replies are on disk alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._battles: dict[str, dict[str, Game]] = {}
        for game in read_log(path):
            self._keep(game)

    def games(self, battle: str) -> list[Game]:
        """Return both games of a battle, or none where it is not whole."""
        found = self._battles.get(battle, {})
        return list(found.values()) if len(found) == 2 else []

    def __contains__(self, battle: str) -> bool:
        return bool(self.games(battle))

    def add(self, games: Sequence[Game]) -> None:
        """Add whole battles; they are on disk when this returns."""
        if games:
            append(self.path, games)
        for game in games:
            self._keep(game)

    def _keep(self, game: Game) -> None:
        self._battles.setdefault(game.battle_id, {})[game.game_id] = replace(game, raw_text="")


def read_log(path: Path) -> Iterable[Game]:
    """Yield the games of a log; what a kill cut off at its end is passed over.

    Raises: DataError for a line that is not what was written.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _game(json.loads(line))
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{path}:{number} is damaged: it is not the record of a game",
                    "delete that line: the battle is judged again, from the kept replies",
                ) from error


_FIELDS = frozenset(field.name for field in fields(Game))


def _game(row: dict[str, Any]) -> Game:
    for key in ("style_first", "style_second"):
        if row.get(key) is not None:
            row[key] = Style(**row[key])
    return Game(**{key: value for key, value in row.items() if key in _FIELDS})


def _digest(value: Any) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()[:DIGITS]
