"""From the rows of each source to the rows of each split: duplicates, sampling, held-out prompts,
repeats.

Every choice is random but seeded, and hangs on nothing but the recipe's seed and the source's own
content: neither the other sources nor their order, neither the machine nor the Python version
(`random.Random(str).random()` and SHA-256 are fixed; `hash()` and `random.sample` are not). The
order of work is: duplicates, `max_rows`, the random share of a `weight` below 1, the held-out
split, and last the repeats of a `weight` above 1, which only training rows get.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from aligner.config.recipe import Source
from aligner.data.ledger import SourceLedger
from aligner.data.rows import Row, prompt_text
from aligner.errors import DataError

Get = Callable[[Any], Row]
"""What stands in a pool for a row -> the row. Rows stand there themselves, or their numbers in a
store on disk."""


def itself(row: Any) -> Row:
    """Return the row, which stands in the pool itself."""
    kept: Row = row
    return kept


@dataclass
class Pool:
    """The rows of one source, its books, and the name that its random choices hang on."""

    source: Source
    entry: SourceLedger
    rows: list[Any]
    name: str = ""
    eval_rows: list[Any] = field(default_factory=list)


def name_pools(pools: Sequence[Pool]) -> None:
    """Name each pool after its content; a source listed twice draws differently the second time."""
    seen: dict[str, int] = {}
    for pool in pools:
        content = "/".join(file.sha256 for file in pool.entry.files)
        seen[content] = seen.get(content, 0) + 1
        pool.name = f"{pool.entry.role}:{content}:{seen[content]}"


def remove_duplicates(pools: Sequence[Pool], get: Get = itself) -> None:
    """Keep the first of equal rows, over all sources; a training row that equals a held-out one
    goes."""
    seen: set[bytes] = set()
    for pool in sorted(pools, key=lambda pool: pool.entry.role != "eval"):
        kept = []
        for row in pool.rows:
            key = content_key(get(row))
            if key not in seen:
                seen.add(key)
                kept.append(row)
        pool.entry.duplicates = len(pool.rows) - len(kept)
        pool.rows = kept


def content_key(row: Row) -> bytes:
    """A digest of all that the row says; where it came from does not count."""
    parts = [
        type(row).__name__,
        *(getattr(row, name) for name in row.__slots__ if name != "origin"),
    ]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def sample(pool: Pool, seed: int) -> None:
    """Apply `max_rows`, then a `weight` below 1."""
    total = len(pool.rows)
    wanted = total if pool.source.max_rows is None else min(total, pool.source.max_rows)
    if pool.source.weight < 1.0:
        wanted = max(1, round(wanted * pool.source.weight))
    pool.rows = draw(pool.rows, wanted, f"{seed}:{pool.name}:sample")
    pool.entry.not_sampled = total - len(pool.rows)


def repeat(pool: Pool, rows: list[Any], seed: int) -> list[Any]:
    """Apply a `weight` above 1: whole copies, then a random part of one."""
    copies = int(pool.source.weight)
    if copies < 1:
        return rows
    part = round((pool.source.weight - copies) * len(rows))
    repeated = rows * copies + draw(rows, part, f"{seed}:{pool.name}:repeat")
    pool.entry.repeated = len(repeated) - len(rows)
    return repeated


def draw(rows: list[Any], number: int, seed: str) -> list[Any]:
    """So many rows at random, in their old order."""
    if number <= 0 or number >= len(rows):
        return rows if number > 0 else []
    generator = random.Random(seed)
    ranks = [generator.random() for _ in rows]
    chosen = sorted(range(len(rows)), key=ranks.__getitem__)[:number]
    return [rows[position] for position in sorted(chosen)]


def hold_out(pools: Sequence[Pool], size: float, seed: int, get: Get = itself) -> None:
    """Move a share of the rows (below 1), or a number of them, to `eval_rows`, whole prompts at a
    time.

    Prompts are ranked by a keyed hash of their text, so that the same prompt is held out whatever
    else is in the mixture. A prompt with more rows than are still wanted is passed over.
    """
    ranks = []
    for pool in pools:
        keyed = (f"{seed}:{prompt_text(get(row))}" for row in pool.rows)
        ranks.append([hashlib.sha256(text.encode()).hexdigest() for text in keyed])
    held = _choose_prompts(Counter(chain.from_iterable(ranks)), size)
    for pool, ranks_of_pool in zip(pools, ranks):
        ranked = list(zip(pool.rows, ranks_of_pool))
        pool.eval_rows = [row for row, rank in ranked if rank in held]
        pool.rows = [row for row, rank in ranked if rank not in held]


def _choose_prompts(groups: Counter[str], size: float) -> set[str]:
    total = sum(groups.values())
    if len(groups) < 2:
        found = "one distinct prompt" if groups else "no row"
        raise DataError(
            f"eval: {size} cannot be held out: there is {found} in {total} rows, and no prompt "
            "may be on both sides",
            "give `eval` a source of its own, or leave it out",
        )
    if size >= total:
        raise DataError(
            f"eval: {size} rows cannot be held out: there are {total} rows, and some must be left",
            "hold out fewer, or a share (0.05)",
        )
    target = min(max(1, round(size * total) if size < 1 else int(size)), total - 1)
    held: set[str] = set()
    left = target
    for key in sorted(groups):
        if groups[key] <= left:
            held.add(key)
            left -= groups[key]
    return held or {min(groups, key=lambda key: (groups[key], key))}
