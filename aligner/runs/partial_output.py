"""Resumable output: partial results are kept in `OUTPUT.part/` until the file is complete.

    header.json    what is computed with what; written first
    lock           the process that writes
    *.jsonl        what is done so far (`aligner.runs.journal`, or what the writer makes of it)

An output that was started with something else is never resumed: opening refuses it and says what
changed. Nothing is removed, also to start again, before the lock is held. The finished file is
written in the folder and moved to its place, and then the folder is gone. A link is followed. An
output that is not a file (a pipe, /dev/stdout) is simply written to, at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aligner.errors import UsageError
from aligner.runs.files import dumps, parse_json, sync_folder, write_atomically
from aligner.runs.journal import Journal
from aligner.runs.lock import LOCK_NAME, acquire_lock, release_lock
from aligner.runs.places import refuse_name, refuse_unusable

HEADER = "header.json"
WHOLE = "whole"
"""The finished file, while it is written."""

OTHER_FORMATS = (".csv", ".parquet", ".gz")
"""Endings that promise something else than JSON."""


def is_stream(output: Path) -> bool:
    """Say whether an output is not a file that could be replaced: a pipe, a terminal, a device."""
    if output.absolute().parts[1:2] in (("dev",), ("proc",)):
        return True
    return output.exists() and not output.is_file() and not output.is_dir()


def part_folder(output: Path) -> Path:
    """Where the parts of an unfinished file lie."""
    return output.with_name(f"{output.name}.part")


def check_output(
    output: Path, data: str | None, *, resume: bool, overwrite: bool, suffix: str = ".jsonl"
) -> None:
    """Say what is in the way, before anything is read or computed. `data`: a file or folder that is
    read.

    Raises: UsageError for an output that exists, or that was started, unless the user says what to
    do with it.
    """
    if resume and overwrite:
        raise UsageError("--resume continues and --overwrite starts again", "give one of them")
    refuse_name(output, "--output")
    if is_stream(output):
        if not output.exists():
            raise UsageError(f"there is no device {output}", "name a file, or /dev/stdout")
        if resume:
            raise UsageError(
                f"{output} is not a file: nothing of it is kept",
                "leave out --resume, or name a file",
            )
        return
    if output.suffix in OTHER_FORMATS:
        what = "lines of JSON" if suffix == ".jsonl" else "JSON"
        raise UsageError(
            f"{output} would hold {what}, which its name does not say", f"name it {suffix}"
        )
    if output.is_dir():
        raise UsageError(f"{output} is a folder", f"name a file: {output / f'result{suffix}'}")
    refuse_unusable(output, "--output")
    output = _followed(output)
    if data is not None and Path(data).expanduser().resolve() in (
        output.resolve(),
        *output.resolve().parents,
    ):
        where = (
            "in the folder of the data" if Path(data).expanduser().is_dir() else "the data itself"
        )
        raise UsageError(f"{output} is {where}", "write to another place")
    part = part_folder(output)
    if part.exists() and not _is_ours(part):
        raise UsageError(
            f"{part} is in the way, and aligner did not make it",
            "move it away, or name another output",
        )
    if overwrite:
        return
    if part.exists() and not resume:
        raise UsageError(
            f"{output} was started and not finished",
            "continue with --resume, or start again with --overwrite",
        )
    if output.exists() and not part.exists():
        raise _exists(output, resume=resume)


def _exists(output: Path, *, resume: bool = False) -> UsageError:
    hint = (
        "start again with --overwrite; nothing is left to be resumed"
        if resume
        else "--overwrite replaces it."
    )
    return UsageError(f"{output} exists", hint)


def _followed(output: Path) -> Path:
    return output.resolve() if output.is_symlink() else output


def _is_ours(part: Path) -> bool:
    """Whether we made it; what was killed at once left a lock and perhaps a temporary file."""
    if not part.is_dir():
        return False
    names = [item.name for item in part.iterdir()]
    return HEADER in names or all(
        name == LOCK_NAME or (name[0] == "." and name.endswith(".tmp")) for name in names
    )


class Unfinished:
    """The folder of an unfinished output, for which `check_output` has been asked: `with
    Unfinished(...) as part:`.

    It holds the lock meanwhile. `header` says what is computed with what; its keys are words that a
    user understands.

    Raises, on entering: UsageError when it was started with something else, when another process
    holds it, or when the output has come into being since it was checked.
    """

    def __init__(self, output: Path, header: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.output = _followed(output)
        self.overwrite = overwrite
        self.folder = part_folder(self.output)
        self.header = dict(header)

    def __enter__(self) -> Unfinished:
        self.folder.mkdir(parents=True, exist_ok=True)
        acquire_lock(self.folder)
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _open(self) -> None:
        path = self.folder / HEADER
        if self.overwrite:
            self._clear()
        if not path.exists():
            if self.output.exists() and not self.overwrite:
                raise _exists(self.output)
            write_atomically(path, dumps(self.header, indent=2))
            return
        known = parse_json(path, "start again with --overwrite")
        changed = [
            key for key in {**known, **self.header} if known.get(key) != self.header.get(key)
        ]
        if changed:
            raise UsageError(
                f"{self.output} was started with something else: {' and '.join(changed)} changed "
                "since",
                "give what it was started with, or start again with --overwrite",
            )

    def _clear(self) -> None:
        """Remove everything but the lock; the header last, since a folder without one would not be
        known as ours."""
        if self.folder.exists():
            for item in sorted(self.folder.iterdir(), key=lambda item: item.name == HEADER):
                if item.name != LOCK_NAME:
                    item.unlink()

    def _close(self) -> None:
        """Give the lock back; where nothing is done, nothing is left."""
        if self.folder.exists() and {item.name for item in self.folder.iterdir()} <= {
            HEADER,
            LOCK_NAME,
        }:
            self._clear()
        release_lock(self.folder)
        with suppress(OSError):  # not empty: there is something to resume
            self.folder.rmdir()

    def journal(self, name: str, made_with: str = "") -> Journal:
        """Open the journal of a part of the work."""
        return Journal(self.folder / f"{name}.jsonl", made_with)

    def finish(self, texts: Iterable[str]) -> None:
        """Write the output, whole or not at all, and empty the folder."""
        temporary = self.folder / WHOLE
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(texts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.output)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(self.output.parent)
        self._clear()


class Straight:
    """Stands for `Unfinished` where nothing is kept: with an output that is a stream, or with
    none."""

    def __init__(self, output: Path | None) -> None:
        self.output = output

    def journal(self, name: str, made_with: str = "") -> Journal:
        """Return a journal without a file."""
        return Journal(None, made_with)

    def finish(self, texts: Iterable[str]) -> None:
        """Write to the output, if there is one."""
        if self.output is not None:
            with open(self.output, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(texts)
