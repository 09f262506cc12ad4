"""Typed rows on disk, in a plain format that holds no code: written once in order, then read at
random.

    rows.jsonl       one row a line: its kind, then its fields in order
    rows.offsets     where each line begins, 8 bytes a row
    examples.table   what the planning knows of them (`Examples.save`)
    checksums.json   written last: its presence means that the others are whole

Nothing that is read here can run code, whoever wrote it. What was kept by a version with another
format, or is damaged, is not used: the rows are read again from where they came.
"""

from __future__ import annotations

import array
import json
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, get_args

from aligner.data.rows import Row
from aligner.errors import DataError
from aligner.events import Notice, OnEvent, tell
from aligner.runs.files import CHECKSUMS, check_checksums

ROWS = "rows.jsonl"
OFFSETS = "rows.offsets"
TABLE = "examples.table"

KINDS: dict[str, Any] = {kind.__name__: kind for kind in get_args(Row)}
FIELDS = {name: list(kind.__dataclass_fields__) for name, kind in KINDS.items()}
FORMAT: list[Any] = [1, FIELDS]
"""What a table says of the rows beside it; another one is not read."""

_VALUES = {kind: attrgetter(*FIELDS[name]) for name, kind in KINDS.items()}
_encode = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, separators=(",", ":"), default=str
).encode


class RowStore:
    """Rows in one file on disk: memory holds 8 bytes for each.

    Written by `append` and `flush`; `RowStore.open` reads. A row comes back equal; what JSON does
    not know in a further key of a turn (a date, bytes) comes back as its text.
    """

    def __init__(self, path: Path, offsets: array.array | None = None) -> None:
        self.path = path
        self.offsets = array.array("Q", [0]) if offsets is None else offsets
        self._writer: IO[bytes] | None = None
        self._reader: IO[bytes] | None = None

    @classmethod
    def open(cls, path: Path) -> RowStore:
        """Read a store that was written whole."""
        offsets = array.array("Q")
        offsets.frombytes(path.with_name(OFFSETS).read_bytes())
        return cls(path, offsets)

    def append(self, row: Row) -> int:
        """Write a row and return its number."""
        if self._writer is None:
            self._writer = self.path.open("wb")
        kind = type(row)
        line = _encode([kind.__name__, *_VALUES[kind](row)])
        # halves of surrogate pairs, which plain UTF-8 cannot hold, come back as they are
        record = f"{line}\n".encode("utf-8", "surrogatepass")
        self._writer.write(record)
        self.offsets.append(self.offsets[-1] + len(record))
        return len(self) - 1

    def flush(self) -> None:
        """Make what was written readable here, and leave the offsets for other processes."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self.path.touch()
        self.path.with_name(OFFSETS).write_bytes(self.offsets.tobytes())

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Row:
        if self._reader is None:
            self._reader = open(self.path, "rb", buffering=0)  # noqa: SIM115 (kept open; a mapping would count as memory)
        start, stop = self.offsets[number], self.offsets[number + 1]
        self._reader.seek(start)
        line = self._reader.read(stop - start).decode("utf-8", "surrogatepass")
        kind, *values = json.loads(line)
        row: Row = KINDS[kind](*values)
        return row


def are_kept(folder: Path, on_event: OnEvent | None) -> bool:
    """Say whether a folder holds whole rows of this format; tell why others are read again."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    reason = _why_read_again(folder)
    if reason is not None:
        tell(on_event, Notice(f"the rows in {folder} are read again: {reason}"))
    return reason is None


def _why_read_again(folder: Path) -> str | None:
    if not (folder / CHECKSUMS).exists():
        return "another version of aligner kept them"
    try:
        check_checksums(folder, "")
    except DataError as error:
        return error.message
    with (folder / TABLE).open("rb") as file:
        known = json.loads(file.readline())["format"]
    return None if known == FORMAT else "another version of aligner kept them"
