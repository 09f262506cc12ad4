"""What comes out of a run: battles, a leaderboard, and a summary of everything that was counted.

    battles.jsonl       each battle, its two games merged
    leaderboard.*       ratings with intervals, as `aligner arena rate` writes them
    summary.json        plan, flags, judges, spend, and the win rate of the target

A run that ended early is rated from the battles that are whole, and every page says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aligner.arena import rating
from aligner.arena.battle.log import BATTLES
from aligner.arena.battle.merged import battle_of, is_ruled, played_of, votes_of
from aligner.arena.battle.recipe import ArenaRecipe
from aligner.arena.battle.spend import Spend, totals
from aligner.arena.battle.win_rate import win_rate_of
from aligner.arena.diagnosis import Settings as HowToDiagnose
from aligner.arena.diagnosis import diagnose, unknown_liking
from aligner.arena.judgments import judgments_of
from aligner.arena.leaderboard import category_rows, leaderboard
from aligner.arena.leaderboard import write as write_leaderboard
from aligner.arena.records import READ_WELL, RULE, Battle, Game
from aligner.errors import DataError
from aligner.runs.files import json_line, write_parts_atomically

Record = dict[str, Any]


@dataclass(frozen=True)
class Played:
    """What was played: the games of each whole battle, how many battles the plan wanted, and what
    the plan has to say of itself."""

    battles: Sequence[Sequence[Game]]
    wanted: int
    plan: Record
    stopped: str = ""


def write_outcome(
    folder: Path, recipe: ArenaRecipe, played: Played, answered: Mapping[str, Record], spend: Spend
) -> Record:
    """Write everything that comes out, and return the summary. `answered`: contestant -> what is
    counted of its answers.

    Raises: DataError where no battle can be rated.
    """
    how = recipe.arena.rating
    merged = [battle for games in played.battles if (battle := battle_of(games, how)) is not None]
    merged.sort(key=lambda battle: (battle.prompt_id, battle.model_a, battle.model_b))
    write_parts_atomically(folder / BATTLES, (json_line(asdict(battle)) for battle in merged))
    board = _board(recipe, played)
    write_leaderboard(board, folder)
    target = recipe.arena.target
    return {
        "plan": {"name": recipe.arena.plan, "target": target, **played.plan},
        "battles": {
            "wanted": played.wanted,
            "played": len(played.battles),
            "merged": len(merged),
            "by_rule": _by_rule(played.battles),
        },
        "stopped": played.stopped,
        "models": board["models"],
        "left_out": board["left_out"],
        "notes": board["notes"],
        "contestants": {name: dict(facts) for name, facts in answered.items()},
        "judges": _judges(merged, played.battles),
        "win_rates": {} if target is None else _against(merged, target, recipe),
        "health": _health(played.battles, how.tie_margin),
        "spend": _spend(spend, len(played.battles)),
    }


def _board(recipe: ArenaRecipe, played: Played) -> Record:
    """The leaderboard of all battles, by category where there are any."""
    how = recipe.arena.rating
    votes = votes_of(played.battles, how)
    settings = rating.Settings(
        resamples=how.resamples,
        seed=recipe.seed,
        anchor=how.anchor,
        anchor_rating=how.anchor_rating,
    )
    board = leaderboard(votes, rating.rate(votes, settings), settings)
    if recipe.arena.category is not None:
        board["categories"] = category_rows(rating.by_category(votes, settings))
    if played.stopped:
        board["notes"].insert(0, partial_note(played))
    board["merge"] = how.merge
    return board


def partial_note(played: Played) -> str:
    """Return what is said of a run that ended early."""
    return (
        f"partial: {len(played.battles):,} of {played.wanted:,} battles were judged; "
        f"{played.stopped}"
    )


def _by_rule(battles: Sequence[Sequence[Game]]) -> dict[str, int]:
    counts = Counter(games[0].decoding[RULE] for games in battles if is_ruled(games[0]))
    return dict(sorted(counts.items()))


def _judges(merged: Sequence[Battle], battles: Sequence[Sequence[Game]]) -> Record:
    """Of each judge: what share of its battles each contestant won, ties as half, and what became
    of its replies."""
    found: Record = {}
    for games in battles:
        judge = found.setdefault(
            games[0].judge_id, {"battles": 0, "ties": 0, "unread": {}, "win_share": {}}
        )
        unread = Counter(game.parse_status for game in games if game.parse_status not in READ_WELL)
        for status, count in unread.items():
            judge["unread"][status] = judge["unread"].get(status, 0) + count
    scores: dict[str, dict[str, list[float]]] = {}
    for battle in merged:
        judge = found[battle.judge_id]
        judge["battles"] += 1
        judge["ties"] += battle.winner == "tie"
        of_judge = scores.setdefault(battle.judge_id, {})
        won = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5}[battle.winner]
        of_judge.setdefault(battle.model_a, []).append(won)
        of_judge.setdefault(battle.model_b, []).append(1.0 - won)
    for name, of_judge in scores.items():
        found[name]["win_share"] = {
            model: sum(values) / len(values) for model, values in sorted(of_judge.items())
        }
    return found


def _against(merged: Sequence[Battle], target: str, recipe: ArenaRecipe) -> Record:
    """The win rate of the target, against all and against each."""
    mine = [battle for battle in merged if target in (battle.model_a, battle.model_b)]
    others = sorted({battle.model_a for battle in mine} | {battle.model_b for battle in mine})
    resamples, seed = recipe.arena.rating.resamples, recipe.seed
    found = {"all": win_rate_of(mine, target, resamples, seed)}
    for other in (name for name in others if name != target):
        some = [battle for battle in mine if other in (battle.model_a, battle.model_b)]
        found[other] = win_rate_of(some, target, resamples, seed)
    return {name: rate.to_json() for name, rate in found.items()}


def _health(battles: Sequence[Sequence[Game]], tie_margin: float) -> Record:
    """What the games show of their judges, without those that a rule decided."""
    games = []
    for battle in battles:
        if not is_ruled(battle[0]):
            games += [(battle[0].battle_id, played_of(game)) for game in battle]
    if not games:
        return {}
    try:
        found = diagnose(judgments_of(games, tie_margin), HowToDiagnose())
    except DataError as error:
        return {"missing": error.message}
    shown = ("failed", "findings", "flip_rate", "first_seat")
    judges = {}
    for name, row in found["judges"].items():
        liking = unknown_liking(name, row)
        judges[name] = {key: row[key] for key in shown if key in row} | {"liking": liking}
    return {"judges": judges, "passed": found["passed"]}


def _spend(spend: Spend, battles: int) -> Record:
    used = spend.to_json()
    total = totals(used)
    each = None if total["usd"] is None or not battles else total["usd"] / battles
    by = {name: totals(one) for name, one in used.items()}
    return {"total": total, "usd_per_battle": each, "by": by}
