"""Typed rows on disk, in a plain format that holds no code: written once in order, then read at
random.

A row is a line of JSON: its kind, then its fields in order. Nothing that is read here can run code,
whoever wrote it.
"""

from __future__ import annotations

import array
import json
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, get_args

from aligner.data.rows import Row

KINDS: dict[str, Any] = {kind.__name__: kind for kind in get_args(Row)}
FIELDS = {name: list(kind.__dataclass_fields__) for name, kind in KINDS.items()}
FORMAT: list[Any] = [1, FIELDS]
"""Changes with what a line holds."""

OFFSETS = ".offsets"
"""Ending of the file beside the rows that says where each begins, 8 bytes a row."""

_VALUES = {kind: attrgetter(*FIELDS[name]) for name, kind in KINDS.items()}
_encode = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, separators=(",", ":"), default=str
).encode


class RowStore:
    """Rows in one file on disk: memory holds 8 bytes for each. Without a path it is a file without
    a name, which is gone with the process; `TMPDIR` says where.

    Written by `append` and `flush`; `RowStore.open` reads. A row comes back equal; what JSON does
    not know in a further key of a turn (a date, bytes) comes back as its text.
    """

    def __init__(self, path: Path | None = None, offsets: array.array | None = None) -> None:
        self.path = path
        self.offsets = array.array("Q", [0]) if offsets is None else offsets
        self._writer: IO[bytes] | None = None
        self._reader: IO[bytes] | None = None

    @classmethod
    def open(cls, path: Path) -> RowStore:
        """Read a store that was written whole."""
        offsets = array.array("Q")
        offsets.frombytes(path.with_suffix(OFFSETS).read_bytes())
        return cls(path, offsets)

    def append(self, row: Row) -> int:
        """Write a row and return its number."""
        if self._writer is None:
            self._writer = self.path.open("wb") if self.path else TemporaryFile()  # noqa: SIM115
        kind = type(row)
        line = _encode([kind.__name__, *_VALUES[kind](row)])
        # halves of surrogate pairs, which plain UTF-8 cannot hold, come back as they are
        record = f"{line}\n".encode("utf-8", "surrogatepass")
        self._writer.write(record)
        self.offsets.append(self.offsets[-1] + len(record))
        return len(self) - 1

    def flush(self) -> None:
        """Make what was written readable here, and leave the offsets for other processes."""
        if self.path is None:
            self._reader = self._writer
            return
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self.path.touch()
        self.path.with_suffix(OFFSETS).write_bytes(self.offsets.tobytes())

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Row:
        if self._reader is None:
            assert self.path is not None, "nothing was written, or it was not flushed"
            self._reader = open(self.path, "rb", buffering=0)  # noqa: SIM115 (kept open; a mapping would count as memory)
        start, stop = self.offsets[number], self.offsets[number + 1]
        self._reader.seek(start)
        line = self._reader.read(stop - start).decode("utf-8", "surrogatepass")
        kind, *values = json.loads(line)
        row: Row = KINDS[kind](*values)
        return row
