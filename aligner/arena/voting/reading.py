"""Prompts with the answers of several models, from files of answers, or from the run of a battle.

The prompts are those that the answers name, or those of a file of their own, which is needed where
answers name only an id, and chooses among them otherwise. A model that did not answer a prompt has
no pair there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from aligner.arena.battle.answer_files import items_in, read_answer_file
from aligner.arena.battle.prompts import read_prompts
from aligner.arena.battle.sheets import Answer, Item
from aligner.config.recipe import Data, Source
from aligner.errors import DataError, UsageError

OF_A_RUN = "stages/answers/*/answers.jsonl"
"""Where a run of `aligner arena battle` keeps the answers of its contestants."""


@dataclass
class Answered:
    """Prompts by id, and each model's answers by id of the prompt. `notes`: what is worth saying
    of the files."""

    items: dict[str, Item] = field(default_factory=dict)
    answers: dict[str, dict[str, Answer]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_answered(
    files: Sequence[str], prompts: str | None = None, category: str | None = None
) -> Answered:
    """Read files of answers, each given as FILE or NAME=FILE, and those of runs of `aligner arena
    battle`, given as folders. `prompts`: a source of the prompts, with perhaps a column `category`.

    Raises: DataError for rows that cannot be used; UsageError for two files of one model.
    """
    named = list(chain.from_iterable(map(_named, files)))
    found = Answered(_items([path for _, path in named], prompts, category))
    items = list(found.items.values())
    for name, path in named:
        read = read_answer_file(path, items, name)
        if read.model in found.answers:
            raise UsageError(
                f"two files are of {read.model}", "give each a name of its own: NAME=FILE NAME=FILE"
            )
        found.answers[read.model] = read.answers
        if read.others:
            found.notes.append(f"{path}: {read.others:,} answers are to other prompts")
        if read.reasoned:
            found.notes.append(f"{path}: {read.reasoned:,} answers began with thinking: not shown")
    return found


def _named(given: str) -> list[tuple[str, Path]]:
    """A name, perhaps empty, and the file; of a run, each of its contestants."""
    name, equals, path = given.partition("=")
    if equals and not Path(given).exists():
        return [(name, Path(path))]
    if not Path(given).is_dir():
        return [("", Path(given))]
    found = sorted(Path(given).glob(OF_A_RUN))
    if not found:
        raise DataError(
            f"{given} is a folder, and none of a battle: it has no {OF_A_RUN}",
            "name files of answers; of a training with eval.arena, those in its folder arena/",
        )
    return [("", file) for file in found]


def _items(paths: Sequence[Path], prompts: str | None, category: str | None) -> dict[str, Item]:
    if prompts is not None:
        data = Data(train=[Source(path=prompts)])
        return {item.id: item for item in read_prompts(data, 0, category).items}
    if category is not None:
        raise UsageError(f"--category {category} is a column of the prompts", "add --data")
    items: dict[str, Item] = {}
    for path in paths:
        try:
            items |= {item.id: item for item in items_in(path) if item.id not in items}
        except DataError as error:
            hint = "correct them, or give the prompts as well: --data FILE"
            raise DataError(error.message, hint, error.problems) from error
    return items
