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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aligner.errors import UsageError
from aligner.events import OnEvent
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


class PartialOutput:
    """The output of a command until it is whole, for which `check_output` has been asked: `with
    PartialOutput(...) as part:`.

    Its folder keeps what is done, and the lock meanwhile. An output that is a stream, or none, has
    no folder, and nothing of it is kept. `header` gives what is computed with what, under words
    that a user understands; it is called only where something is kept.

    Raises, on entering: UsageError when it was started with something else, when another process
    holds it, or when the output has come into being since it was checked.
    """

    def __init__(
        self,
        output: Path | None,
        header: Callable[[], Mapping[str, Any]],
        *,
        overwrite: bool = False,
        on_event: OnEvent | None = None,
    ) -> None:
        self.on_event = on_event
        self.output, self.folder = output, None
        if output is not None and not is_stream(output):
            self.output = _followed(output)
            self.folder = part_folder(self.output)
        self.header = header
        self.overwrite = overwrite

    def __enter__(self) -> PartialOutput:
        if self.output is not None and self.folder is not None:
            header = dict(self.header())
            self.folder.mkdir(parents=True, exist_ok=True)
            acquire_lock(self.folder)
            try:
                _start(self.folder, self.output, header, overwrite=self.overwrite)
            except BaseException:
                _give_back(self.folder)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is not None:
            _give_back(self.folder)

    def journal(self, name: str, fingerprint: str = "") -> Journal:
        """Open the journal of a part of the work; it has no file where nothing is kept. The
        listener hears of damage in it."""
        journal = Journal(self.folder and self.folder / f"{name}.jsonl", fingerprint)
        journal.tell_damaged(self.on_event)
        return journal

    def finish(self, texts: Iterable[str]) -> None:
        """Write the output, if there is one: a file whole or not at all, whose folder is then
        empty."""
        if self.output is None:
            return
        if self.folder is None:
            with open(self.output, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(texts)
            return
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
        _clear(self.folder)


def _start(folder: Path, output: Path, header: dict[str, Any], *, overwrite: bool) -> None:
    """Write the header, or refuse one that says something else."""
    path = folder / HEADER
    if overwrite:
        _clear(folder)
    if not path.exists():
        if output.exists() and not overwrite:
            raise _exists(output)
        write_atomically(path, dumps(header, indent=2))
        return
    known = parse_json(path, "start again with --overwrite")
    changed = [key for key in {**known, **header} if known.get(key) != header.get(key)]
    if changed:
        raise UsageError(
            f"{output} was started with something else: {' and '.join(changed)} changed since",
            "give what it was started with, or start again with --overwrite",
        )


def _clear(folder: Path) -> None:
    """Remove everything but the lock; the header last, since a folder without one would not be
    known as ours."""
    if folder.exists():
        for item in sorted(folder.iterdir(), key=lambda item: item.name == HEADER):
            if item.name != LOCK_NAME:
                item.unlink()


def _give_back(folder: Path) -> None:
    """Give the lock back; where nothing is done, nothing is left."""
    if folder.exists() and {item.name for item in folder.iterdir()} <= {HEADER, LOCK_NAME}:
        _clear(folder)
    release_lock(folder)
    with suppress(OSError):  # not empty: there is something to resume
        folder.rmdir()
