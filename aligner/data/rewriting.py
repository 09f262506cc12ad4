"""Convert a source of rows to a file of another form or kind: JSON lines, CSV or Parquet.

Rows come as a stream, and lie on disk until all of them were understood: a table needs the columns
of all rows. The file is then read back, row by row, as a training would read it, and takes its
place only if every row says what it said; columns beside the form's go along. What a form or a kind
of file cannot hold is an error that names the row.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from aligner.config.recipe import Source
from aligner.data.checks import BadRow
from aligner.data.columns import check_columns, move_columns
from aligner.data.convert import as_text, meaning, written
from aligner.data.files import BLANK, Unreadable, read_file
from aligner.data.formats import HEAD_ROWS, OPTIONAL, REQUIRED, choose_form
from aligner.data.mapping import map_row
from aligner.data.row_texts import task_of
from aligner.data.rows import Row, Task
from aligner.data.sources import open_source
from aligner.errors import DataError

FORMS = tuple(REQUIRED)
KINDS = (".jsonl", ".csv", ".parquet")
"""Kinds of files that are written."""

AT_ONCE = 1000
"""Rows of a Parquet file that are written together."""

Raw = dict[str, Any]


@dataclass
class Converted:
    """What became of a source. `from_form`, `to_form`: of its rows; `kept`: columns beside the
    form's, which went along."""

    rows: int = 0
    from_form: str = ""
    to_form: str = ""
    kept: set[str] = field(default_factory=set)
    columns: dict[str, None] = field(default_factory=dict)
    in_turns: bool = False
    """Whether prompts that were turns stay turns, since a column of a table has one type."""


def convert(
    source: Source, output: Path, to: str | None = None, drop: tuple[str, ...] = ()
) -> Converted:
    """Convert a source to the form `to`, None for its own, in a file whose name says its kind.
    Columns of `drop` are left out.

    Raises: DataError for the first row that cannot be read, or that would lose something.
    """
    done = Converted(in_turns=output.suffix == ".parquet")
    temporary = output.with_name(f".{output.stem}.{os.getpid()}{output.suffix}")
    with TemporaryFile("w+", encoding="utf-8", errors="surrogatepass") as spool:
        for origin, raw in _rows(source, to, set(drop), done):
            spool.write(json.dumps([origin, raw], ensure_ascii=False) + "\n")
        if not done.rows:
            raise DataError(f"{source.path} holds no rows", "check the path")
        try:
            _write(temporary, spool, list(done.columns))
            _compare(temporary, spool, done, task_of_form(done.to_form))
            os.replace(temporary, output)
        finally:
            temporary.unlink(missing_ok=True)
    return done


def task_of_form(form: str) -> Task:
    """What rows of a form are read for."""
    if form == "preference":
        return "preference"
    return "prompts" if form == "prompt" else "sft"


def _rows(
    source: Source, to: str | None, drop: set[str], done: Converted
) -> Iterator[tuple[str, Raw]]:
    """Place and new columns of every row."""
    task = task_of(source)
    stream = ((origin, row) for origin, row in open_source(source) if row is not BLANK)
    head = list(islice(stream, HEAD_ROWS))
    known = [row for _, row in head if isinstance(row, dict)]
    if known:
        check_columns(known, source, task)
        moved = [move_columns(row, source.columns) for row in known]
        done.from_form = choose_form(moved, source, task)[0]
        done.to_form = to or done.from_form
    for origin, raw in chain(head, stream):
        try:
            new = _one(raw, source, task, drop, done, origin)
        except BadRow as bad:
            raise DataError(
                f"{origin}: {bad}", "fix or leave out the row; aligner data check lists all"
            ) from None
        done.rows += 1
        done.columns |= dict.fromkeys(new)
        yield origin, new


def _one(raw: Any, source: Source, task: Task, drop: set[str], done: Converted, origin: str) -> Raw:
    if isinstance(raw, Unreadable):
        raise BadRow(raw.reason)
    columns = move_columns(raw, source.columns)
    row = map_row(columns, done.from_form, task, origin)
    new = written(row, done.to_form, in_turns=done.in_turns)
    used = {*REQUIRED[done.from_form], *OPTIONAL[done.from_form]}
    beside = {name: columns[name] for name in columns if name not in used | drop}
    taken = {*REQUIRED[done.to_form], *OPTIONAL[done.to_form]}
    if clash := sorted(taken & {*beside}):
        raise BadRow(f"the column `{clash[0]}` would be read as part of a `{done.to_form}` row")
    _refuse_beyond_json(beside)
    done.kept |= {*beside}
    new = {**new, **beside}
    _refuse_loss(row, new, done)
    return new


def _refuse_beyond_json(columns: Raw) -> None:
    for name, value in columns.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise BadRow(f"the column `{name}` holds what JSON cannot: {error}") from None


def _refuse_loss(row: Row, new: Raw, done: Converted) -> None:
    again = map_row(new, done.to_form, task_of_form(done.to_form), row.origin)
    if meaning(again) != meaning(row):
        raise BadRow(f"as a `{done.to_form}` row it would not say the same")


def _spooled(spool: IO[str]) -> Iterator[tuple[str, Raw]]:
    spool.seek(0)
    for line in spool:
        origin, raw = json.loads(line)
        yield origin, raw


def _compare(path: Path, spool: IO[str], done: Converted, task: Task) -> None:
    """Read the file back, and compare every row with what it should be."""
    again = (row for _, row in read_file(path) if row is not BLANK)
    for origin, wanted in _spooled(spool):
        found = next(again, None)
        if (lost := _lost(wanted, found, done, task, path.suffix)) is not None:
            raise DataError(
                f"{origin}: a {path.suffix} file cannot hold {lost} as it is",
                "write .jsonl, or leave a column out with --drop NAME",
            )
    assert next(again, None) is None, f"{path} holds more rows than were written"


def _lost(wanted: Raw, found: Any, done: Converted, task: Task, kind: str) -> str | None:
    """What of a row did not come back; None for nothing."""
    if not isinstance(found, dict):
        return "this row"
    for name in sorted(done.kept):
        before, after = wanted.get(name), found.get(name)
        has_no_null = kind == ".csv" and before is None and after == "" and name not in wanted
        if before != after and not has_no_null:
            return f"the column `{name}`"
    try:
        same = meaning(map_row(found, done.to_form, task, "")) == meaning(
            map_row(wanted, done.to_form, task, "")
        )
    except BadRow as bad:
        return f"this row ({bad})"
    return None if same else "this row"


def _write(path: Path, spool: IO[str], columns: list[str]) -> None:
    try:
        WRITERS[path.suffix](path, spool, columns)
    except UnicodeEncodeError as error:
        raise DataError(
            f"a row holds half a surrogate pair, which UTF-8 cannot: {error.object[:40]!r}",
            "leave its column out with --drop NAME",
        ) from error


def _write_jsonl(path: Path, spool: IO[str], _: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for _origin, raw in _spooled(spool):
            file.write(json.dumps(raw, ensure_ascii=False) + "\n")


def _write_csv(path: Path, spool: IO[str], columns: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for _, raw in _spooled(spool):
            writer.writerow([as_text(raw[name]) if name in raw else "" for name in columns])


def _write_parquet(path: Path, spool: IO[str], columns: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = _schema(spool, columns)
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for batch in _batches(spool, columns):
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
    except (pyarrow.ArrowException, OverflowError) as error:
        raise DataError(
            f"the rows do not fit a Parquet file: {error}",
            "write .jsonl, or leave a column out with --drop NAME",
        ) from error


def _schema(spool: IO[str], columns: list[str]) -> Any:
    """The schema of all rows together."""
    import pyarrow

    schemas = []
    for batch in _batches(spool, columns):
        table = {name: list(map(itemgetter(name), batch)) for name in columns}
        schemas.append(pyarrow.Table.from_pydict(table).schema)
    return pyarrow.unify_schemas(schemas, promote_options="permissive")


def _batches(spool: IO[str], columns: list[str]) -> Iterator[list[Raw]]:
    rows = (raw for _, raw in _spooled(spool))
    absent = dict.fromkeys(columns)
    while batch := [absent | row for row in islice(rows, AT_ONCE)]:
        yield batch


WRITERS: dict[str, Callable[[Path, IO[str], list[str]], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
