"""The pool that a test set is chosen from: prompts of files, each once.

A prompt is dropped that asks nothing, that is the same as an earlier one, or nearly
(`aligner.data.duplicates`); each is counted. Prompts stand in the order of a hash of what they say,
so that the order of rows and files chooses nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from aligner.arena.battle.prompts import ID_COLUMNS, id_in
from aligner.config.recipe import Source
from aligner.data.duplicates import SeenTexts
from aligner.data.ledger import FileRecord, Ledger
from aligner.data.loading import read_source
from aligner.data.rows import Messages, PromptRow, as_turns, refuse_tools
from aligner.errors import DataError, Problem
from aligner.runs.files import dumps

ID_DIGITS = 16
LISTED = 20

Prompt = str | Messages


@dataclass(frozen=True, slots=True)
class PoolItem:
    """A prompt of the pool. `difficulty`: from a column, where one is named."""

    id: str
    prompt: Prompt
    answer: str | None = None
    category: str = ""
    difficulty: float | None = None
    origin: str = ""

    @property
    def asked(self) -> str:
        """What the user says, all turns."""
        return "\n".join(user_turns(self.prompt))


@dataclass
class Pool:
    """What may be chosen, where it came from, and how many prompts were left out, by reason."""

    items: list[PoolItem]
    files: list[FileRecord] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    remarks: list[str] = field(default_factory=list)


def user_turns(prompt: Prompt) -> list[str]:
    """What the user says in a prompt, turn by turn."""
    return [str(turn["content"]) for turn in as_turns(prompt, "user") if turn["role"] == "user"]


def read_pool(
    sources: Sequence[Source],
    *,
    category: str = "category",
    difficulty: str | None = None,
    near_duplicates: float | None = 0.8,
) -> Pool:
    """Read prompts. `category`, `difficulty`: columns to keep; `near_duplicates`: Jaccard
    similarity from which of two prompts only one stays, None for exact duplicates alone.

    Raises: DataError for rows without a prompt or, where a column is named for it, without a
    difficulty that is a number.
    """
    ledger, rows = Ledger(), []
    keep = (*ID_COLUMNS, category, *([difficulty] if difficulty else []))
    for source in sources:
        read = read_source(source, "prompts", "error", ledger, keep)
        rows += [row for row in read if isinstance(row, PromptRow)]
    refuse_tools(rows, "a model of an arena")
    files = [file for entry in ledger.sources for file in entry.files]
    pool = Pool([], files, rows=len(rows), remarks=_ids_replaced(rows))
    found = _items(rows, category, difficulty, trusts_ids=not pool.remarks)
    seen = SeenTexts(near_duplicates)
    for item in sorted(found, key=lambda item: (content_id(item.prompt), item.origin)):
        match = seen.match(item.asked) if item.asked.strip() else None
        if not item.asked.strip():
            pool.left_out["empty prompts"] += 1
        elif match is not None:
            pool.left_out["duplicates" if match.exact else "near duplicates"] += 1
        else:
            seen.add(item.asked, item.id)
            pool.items.append(item)
    if not pool.items:
        raise DataError("the pool holds no prompt", "name files with prompts")
    return pool


def content_id(prompt: Prompt) -> str:
    """Return sixteen letters that stand for what a prompt says."""
    turns = as_turns(prompt, "user")
    return sha256(dumps(turns).encode()).hexdigest()[:ID_DIGITS]


def _ids_replaced(rows: Sequence[PromptRow]) -> list[str]:
    """A remark where the columns of ids do not tell all prompts apart, so that hashes are used."""
    named = [name for row in rows if (name := id_in(row.extra)) is not None]
    if not named:
        return []
    if len(named) == len(rows) == len(set(named)):
        return []
    what = "some rows have no id" if len(named) < len(rows) else "some rows have the same id"
    return [f"{what}: all prompts are called by a hash of what they say"]


def _items(
    rows: Sequence[PromptRow], category: str, difficulty: str | None, *, trusts_ids: bool
) -> list[PoolItem]:
    problems, items = [], []
    for row in rows:
        rated = row.extra.get(difficulty) if difficulty else None
        is_number = isinstance(rated, int | float) and not isinstance(rated, bool)
        if difficulty and not (is_number and math.isfinite(rated or 0)):
            problems.append(Problem(f"{difficulty} is {_shown(rated)}, not a number", row.origin))
            continue
        own = id_in(row.extra) if trusts_ids else None
        items.append(
            PoolItem(
                own or content_id(row.prompt),
                row.prompt,
                row.answer,
                str(row.extra.get(category) or ""),
                None if rated is None else float(rated),
                row.origin,
            )
        )
    if problems:
        raise DataError(
            f"{len(problems):,} of {len(rows):,} rows say no difficulty",
            "name another column with --difficulty, or rate the prompts with --rater",
            problems[:LISTED],
        )
    return items


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{str(value)[:40]!r}"
