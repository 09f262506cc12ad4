"""A run of `aligner arena battle` as contests, ready to be selected from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.arena.battle.answer_files import read_answer_file
from aligner.arena.battle.build import STAGES, read_inputs
from aligner.arena.battle.contestants import ANSWERS, FOLDER, folder_of, rev_of
from aligner.arena.battle.outcome import BATTLES
from aligner.arena.battle.prompts import ID_COLUMNS, digest_of, id_in
from aligner.arena.battle.recipe import ArenaRecipe
from aligner.arena.records import read_battles
from aligner.arena.selection.contests import Contest, contests_of
from aligner.config.load import Resolved
from aligner.config.recipe import Data
from aligner.data.loading import load_rows
from aligner.data.rows import PromptRow
from aligner.errors import DataError, UsageError
from aligner.events import OnEvent
from aligner.runs.files import parse_json
from aligner.runs.stages import RECORD


@dataclass(frozen=True)
class BattleRun:
    """A finished run: its recipe, and its prompts with what was answered and judged. `revs`: what
    tells each contestant from others of its name."""

    recipe: ArenaRecipe
    contests: list[Contest]
    revs: dict[str, str]

    @property
    def names(self) -> list[str]:
        """Who fought."""
        return [one.name for one in self.recipe.arena.contestants]

    @property
    def has_points(self) -> bool:
        """Whether every judge gives points from 1 to 10."""
        judges = self.recipe.arena.judges
        return all(one.endpoint is not None or one.faults is not None for one in judges)


def read_run(
    folder: Path,
    difficulty: str | None = None,
    on_event: OnEvent | None = None,
    *,
    allow_partial: bool = False,
) -> BattleRun:
    """Read a run. `difficulty`: the column of its prompts that holds how hard they are.
    `allow_partial`: also one that was stopped, whose later battles are missing.

    Raises: UsageError where this is no such run; DataError where its prompts are others now.
    """
    for name in ("resolved.json", BATTLES, "inputs.json"):
        if not (folder / name).is_file():
            raise UsageError(
                f"{folder} is no finished run of `aligner arena battle`: it has no {name}",
                "name the run directory; a run that was stopped continues with --resume",
            )
    if not (allow_partial or (folder / "manifest.json").is_file()):
        raise UsageError(
            f"{folder} was stopped before its end: battles are missing",
            "continue it with --resume, or select from what was judged with --allow-partial",
        )
    hint = "run the battles again"
    recipe = Resolved.from_json(parse_json(folder / "resolved.json", hint)).recipe
    if not isinstance(recipe, ArenaRecipe):
        raise UsageError(f"{folder} is a run of {recipe.method!r}, not of battles", "name another")
    inputs = read_inputs(recipe, on_event)
    known: dict[str, Any] = parse_json(folder / "inputs.json", hint)
    if known.get("fingerprint") != inputs.prompts.fingerprint:
        raise DataError(
            f"the prompts of {folder} are not what they were when it battled",
            "restore the files, or run the battles again with --resume",
        )
    answers, revs = {}, {}
    for section in recipe.arena.contestants:
        stage = folder / STAGES / FOLDER / folder_of(section.name)
        found_in = read_answer_file(stage / ANSWERS, inputs.items, section.name)
        answers[section.name] = found_in.answers
        revs[section.name] = rev_of(parse_json(stage / RECORD, hint)["made_of"])
    found: dict[str, float] = {}
    if difficulty is not None and recipe.data is not None:
        found = difficulties_of(_rows(recipe.data, recipe.seed, difficulty), difficulty)
    battles = read_battles(folder / BATTLES)
    return BattleRun(recipe, contests_of(inputs.items, answers, battles, found), revs)


def _rows(data: Data, seed: int, column: str) -> list[PromptRow]:
    loaded = load_rows(data, "prompts", seed, keep=(*ID_COLUMNS, column))
    return [row for row in loaded.train if isinstance(row, PromptRow)]


def difficulties_of(rows: Sequence[PromptRow], column: str) -> dict[str, float]:
    """Return how hard prompts are, by their id, where they say so.

    Raises: DataError for a value that is not a number, and where no row has the column.
    """
    found: dict[str, float] = {}
    for row in rows:
        value = row.extra.get(column)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(
                f"{row.origin}: {column} is {value!r}, and a difficulty is a number",
                "name a column of numbers",
            )
        found[id_in(row.extra) or digest_of(row.prompt)] = float(value)
    if not found:
        raise DataError(f"no row has the column {column}", "name one that they have")
    return found
