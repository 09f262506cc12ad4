"""From games to battles and votes, for the battles of a plan: a panel's judges have a vote each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from aligner.arena.battle.log import BATTLES
from aligner.arena.merging import Played, add_battle
from aligner.arena.records import READ_WELL, RULE, Battle, Game, Style
from aligner.arena.votes import VoteBuilder, Votes
from aligner.config.battles import Rating

OUTCOMES = {1.0: "model_a", 0.0: "model_b", 0.5: "tie"}


def played_of(game: Game) -> Played:
    """Return what merging and diagnosis need of a game."""
    is_read = game.parse_status in READ_WELL
    return Played(
        game.model_first,
        game.model_second,
        game.prompt_id,
        game.score_first if is_read else None,
        game.score_second if is_read else None,
        game.category,
        game.style_first,
        game.style_second,
        judge=game.judge_id,
        is_ruled=is_ruled(game),
    )


def is_ruled(game: Game) -> bool:
    """Say whether a rule decided it, and no judge."""
    return RULE in game.decoding


def votes_of(battles: Iterable[Sequence[Game]], how: Rating) -> Votes:
    """Return the votes of battles, each given by its games."""
    builder = VoteBuilder()
    for games in battles:
        add_battle([played_of(game) for game in games], how.merge, how.tie_margin, builder)
        builder.judges.add(games[0].judge_id)
    return builder.votes()


def battle_of(games: Sequence[Game], how: Rating) -> Battle | None:
    """Return a battle, its two games merged; None where a reply could not be read, or the rule
    leaves it out. Of games that a rule decided there are no scores.

    With `merge: votes`, where each game is a vote, it is the mean.
    """
    one = games[0]
    played = [played_of(game) for game in games]
    if any(game.score_first is None or game.score_second is None for game in played):
        return None
    builder = VoteBuilder()
    rule = "mean" if how.merge == "votes" else how.merge
    add_battle(played, rule, how.tie_margin, builder)
    if not len(builder):
        return None
    outcome = float(builder.votes().outcome[0])
    a, b = sorted((one.model_first, one.model_second))
    means = (None, None) if is_ruled(one) else (_mean(games, a), _mean(games, b))
    margin = 0.0 if is_ruled(one) else how.tie_margin
    signs = {_sign(game.margin(a), margin) for game in played}
    styles = (one.style_first, one.style_second)
    style_a, style_b = styles if one.model_first == a else styles[::-1]
    return Battle(
        one.battle_id,
        one.prompt_id,
        a,
        b,
        one.judge_id,
        OUTCOMES[outcome],  # type: ignore[arg-type]
        means[0],
        means[1],
        None if is_ruled(one) else sum(game.margin(a) for game in played) / len(played),
        len(signs) == 1,
        len(games),
        one.category,
        style_a=style_a,
        style_b=style_b,
        judge_rev=one.judge_rev,
    )


def _mean(games: Sequence[Game], model: str) -> float:
    scores = [
        game.score_first if game.model_first == model else game.score_second for game in games
    ]
    return sum(score for score in scores if score is not None) / len(scores)


def _sign(margin: float, tie_margin: float) -> float:
    return 0.0 if abs(margin) <= tie_margin else math.copysign(1.0, margin)


def read_battles(run_dir: Path) -> list[Battle]:
    """Return the merged battles of a run that is done."""
    found = []
    for line in (run_dir / BATTLES).read_bytes().splitlines():
        row = json.loads(line)
        for key in ("style_a", "style_b"):
            row[key] = None if row[key] is None else Style(**row[key])
        found.append(Battle(**row))
    return found
