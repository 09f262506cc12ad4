"""Load the data section of a recipe: typed rows for training and evaluation, with their ledger and
a fingerprint.

What is wrong is reported together: every source is read before anything is refused, and the first
broken rows of all of them are listed with file, row and reason. Nothing here knows tokens.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol

from aligner.config.recipe import Data, Source
from aligner.data.checks import BadRow
from aligner.data.columnar import Nulls
from aligner.data.columns import (
    UserFunction,
    apply_function,
    check_columns,
    load_function,
    move_columns,
)
from aligner.data.files import BLANK, Unreadable
from aligner.data.formats import HEAD_ROWS, choose_form, unused_columns
from aligner.data.ledger import LISTED, Ledger, SourceLedger
from aligner.data.mapping import map_row
from aligner.data.memory import MemoryRows
from aligner.data.mixture import (
    Pool,
    hold_out,
    itself,
    name_pools,
    remove_duplicates,
    repeat,
    sample,
)
from aligner.data.rows import (
    CompletionRow,
    ConversationRow,
    PreferenceRow,
    PromptRow,
    Row,
    Task,
    prompt_text,
)
from aligner.data.sources import RawRows, drawn_rows, open_source
from aligner.data.stray import refuse_media, refuse_stray_question, unused_parts
from aligner.errors import DataError, Problem
from aligner.events import OnEvent, Warned, tell

OnBadRow = Literal["error", "drop"]


class Store(Protocol):
    """Where rows can be kept instead of in memory."""

    def append(self, row: Row) -> int:
        """Keep a row, and return its number."""

    def flush(self) -> None:
        """Make what was kept readable."""

    def __getitem__(self, number: int) -> Row: ...


@dataclass
class Loaded:
    """Typed rows of both splits, what became of all others, and a digest of everything that decided
    it.

    Where the rows were kept in a store, these are their numbers in it.
    """

    train: list[Any]
    eval: list[Any]
    ledger: Ledger
    fingerprint: str

    def warn(self, on_event: OnEvent | None) -> None:
        """Warn of columns that are not used and look as if they should be."""
        for remark in self.ledger.remarks():
            tell(on_event, Warned(remark))


def load_rows(
    data: Data,
    task: Task,
    seed: int,
    *,
    group_by: str | None = None,
    keep: Sequence[str] = (),
    store: Store | None = None,
    memory: Mapping[str, MemoryRows] | None = None,
) -> Loaded:
    """Read, map, mix and split the sources of a recipe's `data:` section.

    `group_by` names a column whose value goes along as the rows' `group`; the columns in `keep` go
    along, as they came, in the rows' `extra`. With a `store`, rows are kept there as they are read,
    and memory holds their numbers. `memory` maps `train` and `eval` to rows that are in no file:
    they are read in place of that split's source, whose settings they get.
    """
    ledger = Ledger()
    eval_sources = data.eval if isinstance(data.eval, list) else []
    put = itself if store is None else store.append
    get = itself if store is None else store.__getitem__
    reader = _Reader(task, ledger, group_by, tuple(keep), put, memory or {})
    pools = _read_pools(data.train, eval_sources, reader, data.on_bad_row)
    if store is not None:
        store.flush()
    name_pools(pools)
    if data.deduplicate:
        remove_duplicates(pools, get)
    for pool in pools:
        sample(pool, seed)
    train_pools = [pool for pool in pools if pool.entry.role == "train"]
    if isinstance(data.eval, int | float):
        hold_out(train_pools, data.eval, seed, get)
    loaded = Loaded([], [], ledger, fingerprint(data, task, seed, ledger))
    for pool in pools:
        _deliver(pool, loaded, seed)
    if eval_sources:
        asked = {prompt_text(get(row)) for row in loaded.train}
        ledger.prompts_in_both = sum(prompt_text(get(row)) in asked for row in loaded.eval)
    _refuse_no_rows(data, loaded)
    ledger.check()
    return loaded


def read_source(
    source: Source,
    task: Task,
    on_bad_row: OnBadRow,
    ledger: Ledger,
    keep: Sequence[str] = (),
    memory: MemoryRows | None = None,
    put: Callable[[Row], Any] = itself,
) -> list[Any]:
    """All rows of one source, mapped, with the columns in `keep`; no sampling. With `memory`, the
    rows are those. `put` sees each row as it is read, and what it returns is returned instead."""
    entry = ledger.source(source.path)
    given = {} if memory is None else {"train": memory}
    rows = _Reader(task, ledger, None, tuple(keep), put, given).read(source, entry)
    _refuse_bad_rows([entry], on_bad_row)
    return rows


def begun_source(source: Source, task: Task, most: int, ledger: Ledger) -> tuple[list[Row], bool]:
    """Return the first usable rows of a source, at most so many, and whether they are all of them.
    What follows is not read, and the files have no hash in the ledger."""
    entry = ledger.source(source.path)
    reader = _Reader(task, ledger)
    rows = list(islice(reader.rows(source, entry, open_source(source)), most + 1))
    if not rows:
        _refuse_bad_rows([entry], "drop")
    return rows[:most], len(rows) <= most


def drawn_from_source(
    source: Source, task: Task, count: int, draw: random.Random, ledger: Ledger
) -> list[Row] | None:
    """Return usable rows of a source, drawn at random; None for one that can only be read from its
    beginning."""
    stream = drawn_rows(source, draw)
    if stream is None:
        return None
    entry = ledger.source(source.path)
    return list(islice(_Reader(task, ledger).rows(source, entry, stream), count))


def _read_pools(
    train: Sequence[Source], held_out: Sequence[Source], reader: _Reader, on_bad_row: OnBadRow
) -> list[Pool]:
    """Read every source; what is wrong with any of them comes out in one error."""
    pools: list[Pool] = []
    errors: list[DataError] = []
    roles: tuple[tuple[Literal["train", "eval"], Sequence[Source]], ...] = (
        ("train", train),
        ("eval", held_out),
    )
    for role, sources in roles:
        for source in sources:
            entry = reader.ledger.source(source.path, role)
            try:
                pools.append(Pool(source, entry, reader.read(source, entry)))
            except DataError as error:
                errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        problems = [Problem(error.message, hint=error.hint) for error in errors]
        raise DataError(f"{len(errors)} sources cannot be used", problems=problems)
    _refuse_bad_rows([pool.entry for pool in pools], on_bad_row)
    return pools


@dataclass(frozen=True)
class _Reader:
    """Reads sources for a task, and puts each row into memory or elsewhere."""

    task: Task
    ledger: Ledger
    group_by: str | None = None
    keep: tuple[str, ...] = ()
    put: Callable[[Row], Any] = itself
    memory: Mapping[str, MemoryRows] = field(default_factory=dict)

    def read(self, source: Source, entry: SourceLedger) -> list[Any]:
        """The usable rows of a source, or of memory in its place, as `put` returns them."""
        nulls, memory = Nulls(), self.memory.get(entry.role)
        opened = (
            open_source(source, entry.files, nulls)
            if memory is None
            else memory.read(entry.files, nulls)
        )
        return list(map(self.put, self.rows(source, entry, opened, nulls)))

    def rows(
        self, source: Source, entry: SourceLedger, opened: RawRows, nulls: Nulls | None = None
    ) -> Iterator[Row]:
        """Yield the usable rows among raw ones; losses go to the books."""
        function = None if source.function is None else load_function(source.function)
        stream = _raw_rows(source, function, entry, opened, nulls or Nulls())
        head = list(islice(stream, HEAD_ROWS))
        if not head:
            if not entry.rows_read:
                raise DataError(
                    f"{source.path} holds no rows", "check the path, or remove the source"
                )
            return
        check_columns([row for _, row in head], source, self.task, self.keep)
        moved = [move_columns(row, source.columns) for _, row in head]
        entry.format, entry.evidence = choose_form(moved, source, self.task)
        refuse_stray_question(moved, source, entry.format)
        entry.unused_columns = [
            name
            for name in unused_columns(moved, entry.format, self.task)
            if name != self.group_by and name not in self.keep
        ]
        entry.looked_at = len(moved)
        entry.unused_parts = unused_parts(moved, entry.unused_columns)
        for origin, row in chain(head, stream):
            try:
                mapped = self._map(move_columns(row, source.columns), entry, origin)
            except BadRow as bad:
                entry.note_bad(origin, str(bad))
            else:
                yield mapped

    def _map(self, raw: dict[str, Any], entry: SourceLedger, origin: str) -> Row:
        refuse_media(raw)
        row = map_row(raw, entry.format, self.task, origin)
        if self.keep and isinstance(row, ConversationRow | CompletionRow | PreferenceRow):
            row = replace(row, extra={name: raw[name] for name in self.keep if name in raw})
        elif self.keep and isinstance(row, PromptRow):
            kept = {name: raw[name] for name in self.keep if name in raw and name != "answer"}
            row = replace(row, extra={**kept, **row.extra})
        if (
            self.group_by is None
            or entry.role == "eval"
            or not isinstance(row, ConversationRow | CompletionRow)
        ):
            return row
        if raw.get(self.group_by) is None:
            raise BadRow(f"`{self.group_by}`, the column to group by, is missing")
        return replace(row, group=str(raw[self.group_by]))


def _raw_rows(
    source: Source,
    function: UserFunction | None,
    entry: SourceLedger,
    opened: RawRows,
    nulls: Nulls,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows as read, after the user's function; what cannot be read is counted on the way."""
    for origin, row in opened:
        entry.nulls = nulls.count
        if row is BLANK:
            entry.blank_lines += 1
            continue
        entry.rows_read += 1
        if isinstance(row, Unreadable):
            entry.note_bad(origin, row.reason)
        elif function is None:
            yield origin, row
        else:
            yield from _through_function(function, source, origin, row, entry)


def _through_function(
    function: UserFunction, source: Source, origin: str, row: dict[str, Any], entry: SourceLedger
) -> Iterator[tuple[str, dict[str, Any]]]:
    assert source.function is not None
    try:
        made = apply_function(function, row, source.function)
    except BadRow as bad:
        entry.note_bad(origin, str(bad))
        return
    entry.dropped_by_function += not made
    entry.added_by_function += max(0, len(made) - 1)
    for number, new in enumerate(made, start=1):
        yield (origin if len(made) == 1 else f"{origin}#{number}"), new


def _refuse_bad_rows(entries: Sequence[SourceLedger], on_bad_row: OnBadRow) -> None:
    """Raise for broken rows, unless they may be dropped and leave something over."""
    broken = [entry for entry in entries if entry.bad]
    lost = [entry for entry in broken if not entry.rows_mapped]
    if on_bad_row == "drop":
        broken = lost
    if not broken:
        return
    listed = [Problem(bad.reason, where=bad.where) for entry in broken for bad in entry.bad_rows][
        :LISTED
    ]
    total = sum(entry.bad for entry in broken)
    counts = ", ".join(
        f"{entry.bad:,} of {entry.rows_read:,} rows of {entry.path}" for entry in broken
    )
    verb = "is" if total == 1 else "are"
    more = f" (the first {len(listed)} are listed)" if total > len(listed) else ""
    hint = (
        "fix them, or set `data.on_bad_row: drop` to leave them out; they are counted and listed "
        "in `data.json`"
    )
    if lost:
        hint = "no row is usable: check `format`, `columns` and `function` of the source"
    raise DataError(f"{counts} {verb} broken{more}", hint, listed)


def _deliver(pool: Pool, loaded: Loaded, seed: int) -> None:
    """Put a pool's rows, with their repeats, into the splits and into the books."""
    rows = repeat(pool, pool.rows, seed)
    if pool.entry.role == "train":
        loaded.train += rows
        loaded.eval += pool.eval_rows
        pool.entry.to_train, pool.entry.to_eval = len(rows), len(pool.eval_rows)
    else:
        loaded.eval += rows
        pool.entry.to_eval = len(rows)
    loaded.ledger.split("train").rows_in = len(loaded.train)
    if loaded.eval:
        loaded.ledger.split("eval").rows_in = len(loaded.eval)


def _refuse_no_rows(data: Data, loaded: Loaded) -> None:
    for name, rows, wanted in (
        ("train", loaded.train, True),
        ("eval", loaded.eval, data.eval is not None),
    ):
        if wanted and not rows:
            books = "; ".join(
                entry.summary() for entry in loaded.ledger.sources if entry.role == name
            )
            raise DataError(
                f"no row is left in `data.{name}`: {books}",
                "check what the function or the dedup removes",
            )


def fingerprint(data: Data, task: Task, seed: int, ledger: Ledger) -> str:
    """SHA-256 over the sources' bytes, the settings and the seed; where files lie does not
    count."""
    absent = [
        *(() if data.mosaic else ("mosaic",)),
        *(("control_tokens",) if data.control_tokens == "allow" else ()),
    ]
    settings = data.model_dump(exclude={"train", "eval", *absent})
    settings["eval"] = data.eval if isinstance(data.eval, int | float) else None
    sources = [*data.train, *(data.eval if isinstance(data.eval, list) else [])]
    parts = [
        _source_settings(source, entry)
        for source, entry in zip(sources, ledger.sources, strict=True)
    ]
    text = json.dumps([task, seed, settings, parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _source_settings(source: Source, entry: SourceLedger) -> dict[str, Any]:
    settings = source.model_dump(exclude={"path", "function"})
    settings["role"], settings["files"] = entry.role, [file.sha256 for file in entry.files]
    if source.function is not None:
        file, _, name = source.function.rpartition(":")
        settings["function"] = [
            hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest(),
            name,
        ]
    return settings
