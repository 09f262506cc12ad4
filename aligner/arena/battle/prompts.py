"""The prompts of an arena: rows of `data.train` with an id, a category and perhaps a right answer.

An id is that of the row (`prompt_id`, `question_id`, `uid` or `id`), or a hash of what is asked.
Rows without an id that ask the same are one prompt. Prompts keep the order of their files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from aligner.arena.battle.sheets import Item, Prompt
from aligner.config.recipe import Data
from aligner.data.loading import load_rows
from aligner.data.rows import PromptRow, as_turns, prompt_text, refuse_tools
from aligner.errors import DataError, Problem
from aligner.events import DataReady, Notice, OnEvent, StageStarted, tell

ID_COLUMNS = ("prompt_id", "question_id", "uid", "id")
ID_DIGITS = 16
MOST_PROBLEMS = 20


@dataclass
class Prompts:
    """Prompts, the SHA-256 of each file that they came from, and a hash of everything that decided
    them."""

    items: list[Item]
    files: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    ledger: dict[str, Any] = field(default_factory=dict)


def read_prompts(
    data: Data, seed: int, category: str | None = None, on_event: OnEvent | None = None
) -> Prompts:
    """Read the prompts of a recipe. `category`: the column that holds their category.

    Raises: DataError for rows that cannot be asked, or share an id.
    """
    tell(on_event, StageStarted("reading the prompts"))
    columns = (*ID_COLUMNS, *([category] if category is not None else []))
    loaded = load_rows(data, "prompts", seed, keep=columns)
    loaded.warn(on_event)
    refuse_tools(loaded.train, "a contestant")
    rows = [row for row in loaded.train if isinstance(row, PromptRow)]
    if category is not None and not any(row.extra.get(category) is not None for row in rows):
        raise DataError(f"no row has the column {category}", "set arena.category to one they have")
    items, repeated = items_of(rows, category)
    tell(on_event, DataReady(loaded.ledger.table()))
    if repeated:
        rows_are = "1 row asks" if repeated == 1 else f"{repeated:,} rows ask"
        tell(on_event, Notice(f"{rows_are} what an earlier one does, without an id: left out"))
    files = {file.path: file.sha256 for source in loaded.ledger.sources for file in source.files}
    return Prompts(items, files, loaded.fingerprint, loaded.ledger.to_json())


def items_of(rows: Iterable[PromptRow], category: str | None = None) -> tuple[list[Item], int]:
    """Return rows as prompts with ids, and how many were left out, since they ask what an earlier
    row without an id does.

    Raises: DataError for rows without a turn of the user at their end, and for ids given twice.
    """
    items: dict[str, Item] = {}
    problems: list[Problem] = []
    repeated = 0
    for row in rows:
        given = id_in(row.extra)
        name = given or digest_of(row.prompt)
        if complaint := _complaint(row.prompt):
            problems.append(Problem(complaint, row.origin))
        elif name not in items:
            value = row.extra.get(category) if category is not None else None
            group = "" if value is None else str(value)
            items[name] = Item(name, row.prompt, group, row.answer, row.origin)
        elif given is None:
            repeated += 1
        else:
            problems.append(Problem(f"its id {name!r} is that of {items[name].origin}", row.origin))
    refuse(problems, "prompts")
    return list(items.values()), repeated


def id_in(row: dict[str, Any]) -> str | None:
    """Return the id that a row gives, as text."""
    for column in ID_COLUMNS:
        value = row.get(column)
        if isinstance(value, int | str) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return None


def digest_of(prompt: Prompt) -> str:
    """Return the id of a prompt that has none: a hash of its turns, the same for a plain prompt and
    the one turn that asks it."""
    turns = [[turn["role"], turn["content"]] for turn in as_turns(prompt, "user")]
    return sha256(json.dumps(turns).encode()).hexdigest()[:ID_DIGITS]


def asked(prompt: Prompt) -> str:
    """Return what prompts from two files are compared by: what was said, without system turns and
    outer blanks."""
    return prompt_text(PromptRow(prompt))


def digest_of_items(items: Sequence[Item]) -> str:
    """Return a hash of what is asked, for what is made of it."""
    said = [[item.id, digest_of(item.prompt)] for item in items]
    return sha256(json.dumps(said).encode()).hexdigest()


def refuse(problems: Sequence[Problem], what: str) -> None:
    """Raise DataError for what is wrong with rows, at most twenty of them named."""
    if not problems:
        return
    rows = f"1 row of {what}" if len(problems) == 1 else f"{len(problems):,} rows of {what}"
    more = f", the first {MOST_PROBLEMS} of them" if len(problems) > MOST_PROBLEMS else ""
    raise DataError(
        f"{rows} cannot be used{more}", "correct or remove them", problems[:MOST_PROBLEMS]
    )


def _complaint(prompt: Prompt) -> str:
    """What makes a prompt none that can be asked."""
    last = as_turns(prompt, "user")[-1]
    if last["role"] != "user":
        return f"its last turn is of the {last['role']}, not of the user"
    if not isinstance(last["content"], str) or not last["content"].strip():
        return "the user asks nothing: the last turn is empty"
    return ""
