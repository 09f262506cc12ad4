"""SHA-256 of files, each read whole once: a digest is kept in the cache beside what the system says
of the file. Imports no torch.

A kept digest holds while size, inode, and the times of the last writing and of the last change, in
nanoseconds, are the same. Every way of writing to a file changes the last of them, and programs
cannot set it. A file that changed in the last seconds is read again, since the clock of a file
system is coarse.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from aligner.errors import DataError
from aligner.runs.cache import cache_folder
from aligner.runs.files import dumps, file_sha256, parse_json, write_atomically

WORTH_KEEPING = 1 << 20
"""Bytes from which a digest is kept; smaller files are read."""
SETTLED_S = 3.0
AT_ONCE = 4
"""Files that are read at the same time."""


def digests_of(files: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of files, in their order."""
    listed = list(files)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(listed, pool.map(digest_of, listed)))


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, without reading it where it is what it was the last time."""
    before = _state(file)
    if before[0] < WORTH_KEEPING:
        return file_sha256(file)
    place = str(file.resolve())
    kept = cache_folder("digests") / f"{sha256(os.fsencode(place)).hexdigest()}.json"
    known = _known(kept)
    if known.get("state") == before:
        return str(known["sha256"])
    digest = file_sha256(file)
    is_settled = max(before[-2:]) < time.time_ns() - int(SETTLED_S * 1e9)
    if is_settled and _state(file) == before:
        record = {"file": place, "state": before, "sha256": digest}
        with suppress(OSError):  # where the cache cannot be written, it is read again
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, dumps(record))
    return digest


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _known(kept: Path) -> dict[str, object]:
    """What was kept of a file; nothing where that is damaged or may not be read, so that the file
    is read again."""
    with suppress(DataError, OSError):
        if kept.is_file():
            known: dict[str, object] = parse_json(kept, "", needed=["state", "sha256"])
            return known
    return {}
