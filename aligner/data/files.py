"""Read one local file as raw rows with their numbers. Knows JSON lines, JSON, CSV, Parquet and text
lines, and gzip.

What is broken about one row (a line that is no JSON, bytes that are no UTF-8, a row that is no
object) is handed on as an `Unreadable` in the row's place, so that it can be counted and listed;
what is broken about the whole file raises a `DataError`. Files are read as streams, except for
`.json` lists. The number of a row is its line in line-based files, and its position (from 1) in the
others.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from aligner.data.checks import kind
from aligner.data.columnar import BrokenJson, Nulls, repeated_name, rows_of
from aligner.data.ledger import FileRecord
from aligner.data.strict_json import RepeatedKey, decode, decode_rows
from aligner.errors import DataError


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands where a row should be, and says why there is none."""

    reason: str


NEWLINE = b"\n"

CHECK_FILE = "check the file and its permissions"

BLANK = object()
"""Stands for an empty line."""

Numbered = Iterator[tuple[int, Any]]

READ: set[str] = set()
"""Files that this process has read rows from, as whole paths: programs of answers must not."""


def kind_of_file(path: Path) -> str | None:
    """The extension that decides how a file is read (without `.gz`), or None for an unknown one."""
    name = path.name.lower()
    plain = Path(name.removesuffix(".gz")).suffix
    return plain if plain in KINDS and not (plain == ".parquet" and name.endswith(".gz")) else None


def can_be_drawn_from(path: Path) -> bool:
    """Say whether a row in the middle of a file can be read without decoding those before it."""
    return path.suffix.lower() in (".jsonl", ".parquet")


def count_rows(path: Path) -> int:
    """Return how many numbers the rows of a file have that can be drawn from, blank lines
    included."""
    if kind_of_file(path) == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return int(pyarrow.parquet.read_metadata(path).num_rows)
        except pyarrow.ArrowException as error:
            raise _broken_parquet(path, error) from error
    count, last = 0, NEWLINE
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            count += chunk.count(NEWLINE)
            last = chunk[-1:]
    return count + (last != NEWLINE)


def read_file(
    path: Path, nulls: Nulls | None = None, only: AbstractSet[int] | None = None
) -> Numbered:
    """The file's rows, each with its number; `nulls` counts those of Parquet that were taken as
    absent keys. `only`: the numbers of the rows that are wanted, of a file that can be drawn
    from."""
    kind_ = kind_of_file(path)
    assert kind_ is not None, path
    READ.add(str(path.resolve()))
    if path.stat().st_size == 0:
        return
    try:
        if kind_ == ".parquet":
            yield from _parquet(path, nulls or Nulls(), only)
        elif kind_ == ".jsonl":
            yield from _json_lines(path, only)
        else:
            yield from LINE_READERS[kind_](path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is broken or cut off as a gzip file: {error}", "copy or download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", CHECK_FILE) from error


def file_record(path: Path) -> FileRecord:
    """Path, size and SHA-256 of the file's bytes, read as a stream."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", CHECK_FILE) from error
    READ.add(str(path.resolve()))
    return FileRecord(str(path), digest.hexdigest(), size)


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines as bytes, without a byte order mark. Only "\\n" ends a line, as JSON lines
    want it."""
    with _open(path) as stream:
        first = stream.readline()
        if first.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(
                f"{path} is UTF-16, not UTF-8",
                f"convert it: iconv -f UTF-16 -t UTF-8 {path}",
            )
        if first:
            yield 1, first.removeprefix(b"\xef\xbb\xbf")
        yield from enumerate(stream, start=2)


def _json_lines(path: Path, only: AbstractSet[int] | None = None) -> Numbered:
    for number, line in _lines(path):
        if only is not None and number not in only:
            continue
        if not line or line.isspace():
            yield number, BLANK
            continue
        row = _parse(line)
        if number == 1 and line.lstrip().startswith(b"[") and not isinstance(row, dict):
            raise DataError(
                f"{path} is a JSON list, not one JSON object per line",
                "give it the extension .json",
            )
        yield number, row


def _parse(line: bytes) -> Any:
    try:
        row = decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}")
    except json.JSONDecodeError as error:
        return Unreadable(f"broken JSON at column {error.colno}: {error.msg}")
    except RepeatedKey as error:
        return Unreadable(str(error))
    except (ValueError, RecursionError) as error:
        return Unreadable(f"broken JSON: {error}")
    return row if isinstance(row, dict) else Unreadable(f"{kind(row)}, not an object with columns")


def _json(path: Path) -> Numbered:
    """A list of objects, or one object per line."""
    first = next((line for _, line in _lines(path) if line.strip()), b"")
    if first.lstrip().startswith(b"{") and _is_whole(first):
        yield from _json_lines(path)
        return
    document = _json_document(path)
    if isinstance(document, RepeatedKey):
        raise DataError(f"{path}: {document}", "give each key once")
    if isinstance(document, dict):
        names = ", ".join(list(document)[:10])
        raise DataError(
            f"{path} is one JSON object (keys: {names}), not a list of rows",
            "save the list of rows by itself",
        )
    if not isinstance(document, list):
        raise DataError(f"{path} holds {kind(document)}, not a list of rows", "")
    for number, row in enumerate(document, start=1):
        if isinstance(row, dict):
            yield number, row
        elif isinstance(row, RepeatedKey):
            yield number, Unreadable(str(row))
        else:
            yield number, Unreadable(f"{kind(row)}, not an object with columns")


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _json_document(path: Path) -> Any:
    data = b"".join(line for _, line in _lines(path))
    if not data.strip():
        return []
    try:
        return decode_rows(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(NEWLINE, 0, error.start) + 1
        raise DataError(
            f"{path}:{line} is not UTF-8: byte 0x{data[error.start]:02x}", "save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}"
        raise DataError(
            where,
            "a list is read whole; with one object per line (.jsonl) one broken row costs one row",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON: {error}", "") from error


def _csv(path: Path) -> Numbered:
    """Rows under the header's names. Undecodable bytes become surrogates, which the checks of text
    report by row."""
    csv.field_size_limit(1 << 30)
    with io.TextIOWrapper(
        _open(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as stream:
        reader = csv.reader(stream, strict=True)
        try:
            header = next(reader, [])
            _check_header(path, header)
            number = 0
            for fields in reader:
                if not fields:
                    yield number, BLANK
                    continue
                number += 1
                if len(fields) == len(header):
                    yield number, dict(zip(header, fields))
                else:
                    found = f"{len(fields)} fields where the header has {len(header)}"
                    yield number, Unreadable(found)
        except csv.Error as error:
            raise DataError(
                f"{path}:{reader.line_num}: broken CSV: {error}", "check the quotes on that line"
            ) from error


def _check_header(path: Path, header: list[str]) -> None:
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise DataError(
            f"{path}: the columns are not separated by commas: {header[0][:80]!r}",
            "save it with commas",
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: the header names {', '.join(map(repr, twice))} more than once",
            "rename one of them",
        )


def _text(path: Path) -> Numbered:
    """Each line is a row."""
    for number, line in _lines(path):
        stripped = line.rstrip(b"\r\n")
        yield (
            number,
            {"text": stripped.decode("utf-8", "surrogateescape")} if stripped.strip() else BLANK,
        )


def _parquet(path: Path, nulls: Nulls, only: AbstractSet[int] | None = None) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if (name := repeated_name(list(file.schema_arrow))) is not None:
            raise DataError(
                f"{path} has two columns with the name {name!r}", "rename one, or leave it out"
            )
        number = 0
        for batch in file.iter_batches(batch_size=1000):
            numbers = range(number + 1, number + 1 + len(batch))
            number += len(batch)
            if only is not None and only.isdisjoint(numbers):
                continue
            for place, row in zip(numbers, rows_of(batch, nulls), strict=True):
                if only is None or place in only:
                    yield place, readable(row)
    except pyarrow.ArrowException as error:
        raise _broken_parquet(path, error) from error


def _broken_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is broken as a Parquet file: {error}", "copy or download it again")


def readable(row: dict[str, Any] | BrokenJson) -> dict[str, Any] | Unreadable:
    """A decoded row, or what stands in its place."""
    return Unreadable(str(row)) if isinstance(row, BrokenJson) else row


LINE_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".json": _json,
    ".csv": _csv,
    ".txt": _text,
}

KINDS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
"""The extensions that can be read."""
