"""How far a run of `aligner arena battle` is, read from its files; changes nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from aligner.arena.battle.contestants import FOLDER, folder_of
from aligner.arena.battle.log import GAMES, SUMMARY, read_log
from aligner.arena.battle.plan import most_battles
from aligner.arena.battle.recipe import Arena
from aligner.arena.battle.spend import USAGE, in_words
from aligner.config.method import RunStatus
from aligner.runs.files import read_json
from aligner.runs.lock import is_held
from aligner.runs.recipes import recipe_of
from aligner.runs.stages import done_record

COLUMNS = ("part", "state", "done", "spent")


def status_of(run_dir: Path) -> RunStatus:
    """Say how far a run is: a row for each contestant, and one for each judge in the log.

    Raises: UsageError where this is no such run.
    """
    recipe = recipe_of(run_dir, "arena")
    usage = read_json(run_dir, USAGE) or {}
    rows: list[tuple[str, ...]] = []
    facts: dict[str, Any] = {"answers": {}, "games": {}}
    for contestant in recipe["arena"]["contestants"]:
        name = contestant["name"]
        folder = run_dir / "stages" / FOLDER / folder_of(name)
        record = done_record(folder)
        facts["answers"][name] = record is not None
        state = "done" if record is not None else "started" if folder.is_dir() else "-"
        done = "" if record is None else f"{record['facts']['prompts']:,}"
        account = f"answers of {name}"
        rows.append((account, state, done, in_words(usage.get(account, {}))))
    games = Counter(game.judge_id for game in read_log(run_dir / GAMES))
    for judge, count in sorted(games.items()):
        facts["games"][judge] = count
        account = f"judge {judge}"
        rows.append((account, "", f"{count:,} games", in_words(usage.get(account, {}))))
    remark = _remark(run_dir, recipe, games)
    spent = in_words(usage)
    facts |= {"spent": spent, "remark": remark}
    return RunStatus(COLUMNS, rows, "; ".join(filter(None, (remark, spent))), facts)


def _remark(run_dir: Path, recipe: dict[str, Any], games: Counter[str]) -> str:
    """A line on what a run does next, or how it ended."""
    if (run_dir / "manifest.json").exists():
        played = (read_json(run_dir, SUMMARY) or {}).get("battles", {}).get("played", 0)
        return f"done: {played:,} battles"
    state = "running" if is_held(run_dir) else "stopped; the same command with --resume continues"
    prompts = (read_json(run_dir, "data.json") or {}).get("prompts", 0)
    arena = Arena.model_validate(recipe["arena"], strict=False)
    most = most_battles(arena, prompts) * len(arena.judges)
    return f"{state}; {games.total() // 2:,} battles of at most {most:,} are judged"
