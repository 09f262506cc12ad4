"""A file that takes long to compute: until it is whole, a folder `OUTPUT.part` beside it keeps what is done.

    header.json    what is computed with what; written first
    lock           the process that writes
    ...            what is done so far, in files of whoever computes it (`aligner.journal`)

What was begun with something else is never gone on with: opening refuses it and says what changed. Nothing is removed, also
to begin again, before the lock is held. The finished file is written under a temporary name and renamed, and then the
folder is gone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aligner.errors import UsageError
from aligner.lock import LOCK_NAME, acquire_lock, release_lock
from aligner.record import dumps, sync_folder, write_atomically

HEADER = "header.json"

NOT_LINES = (".csv", ".parquet", ".gz")
"""Endings that promise another format than lines of JSON."""


def part_folder(output: Path) -> Path:
    """Where the parts of an unfinished file lie."""
    return output.with_name(f"{output.name}.part")


def check_output(output: Path, data: str | None, *, resume: bool, overwrite: bool) -> None:
    """Say what is in the way, before anything is read or computed. `data`: a file or folder that is read.

    Raises: UsageError for an output that exists, or that was begun, unless the user says what to do with it.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on and --overwrite begins again", "Give one of them.")
    if output.suffix in NOT_LINES:
        raise UsageError(f"{output} would hold lines of JSON, which its name does not say", "Name it .jsonl.")
    if output.is_dir():
        raise UsageError(f"{output} is a folder", "Name a file: scored.jsonl.")
    if data is not None and Path(data).expanduser().resolve() in (output.resolve(), *output.resolve().parents):
        where = "in the folder of the data" if Path(data).expanduser().is_dir() else "the data itself"
        raise UsageError(f"{output} is {where}", "Write to another place.")
    part = part_folder(output)
    if part.exists() and not _is_ours(part):
        raise UsageError(f"{part} is in the way, and aligner did not make it", "Move it away, or name another output.")
    if overwrite:
        return
    if part.exists() and not resume:
        raise UsageError(f"{output} was begun and not finished", "--resume goes on; --overwrite begins again.")
    if output.exists() and not part.exists():
        hint = "--overwrite begins again; nothing is left to be resumed." if resume else "--overwrite replaces it."
        raise UsageError(f"{output} exists", hint)


def _is_ours(part: Path) -> bool:
    """Whether we made it; what was killed at once left a lock and perhaps a temporary file."""
    if not part.is_dir():
        return False
    names = [item.name for item in part.iterdir()]
    return HEADER in names or all(name == LOCK_NAME or (name[0] == "." and name.endswith(".tmp")) for name in names)


class Unfinished:
    """The folder of an unfinished output, for which `check_output` has been asked: `with Unfinished(...) as unfinished:`.

    It holds the lock meanwhile. `header` says what is computed with what; its keys are words that a user understands.

    Raises, on entering: UsageError when it was begun with something else, or when another process holds it.
    """

    def __init__(self, output: Path, header: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.output = output
        self.overwrite = overwrite
        self.folder = part_folder(output)
        self.header = dict(header)

    def __enter__(self) -> Unfinished:
        self.folder.mkdir(parents=True, exist_ok=True)
        acquire_lock(self.folder)
        try:
            self._open()
        except BaseException:
            release_lock(self.folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back; of what nothing is done yet, nothing is left."""
        if self.folder.exists() and {item.name for item in self.folder.iterdir()} == {HEADER, LOCK_NAME}:
            (self.folder / HEADER).unlink()
        release_lock(self.folder)
        with suppress(OSError):  # not empty: there is something to go on with
            self.folder.rmdir()

    def _open(self) -> None:
        path = self.folder / HEADER
        if self.overwrite:
            for item in sorted(self.folder.iterdir(), key=lambda item: item.name == HEADER):  # that one last
                if item.name != LOCK_NAME:
                    item.unlink()
        if not path.exists():
            write_atomically(path, dumps(self.header, indent=2))
            return
        known = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in self.header if known.get(key) != self.header[key]]
        if changed:
            raise UsageError(
                f"{self.output} was begun with something else: {' and '.join(changed)} changed since",
                "Give what it was begun with, or begin again with --overwrite.",
            )

    def finish(self, texts: Iterable[str]) -> None:
        """Write the output, whole or not at all, and remove the folder."""
        temporary = self.output.with_name(f".{self.output.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                for text in texts:
                    file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.output)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(self.output.parent)
        shutil.rmtree(self.folder)
