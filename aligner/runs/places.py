"""Check that a path can be written to before any work starts, by trying it. Imports nothing heavy.

A folder is made below the nearest one that is there, and removed again; so a read-only or virtual
file system, a full quota and missing rights are told in their own words, whoever asks (root may, by
the mode bits, write below /proc).
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from aligner.errors import UsageError

LONGEST_NAME = 255
"""Bytes of a name, on every file system that is in use."""

SPARE = 40
"""Bytes that we add to a name: `.unfinished`, `.NAME.PID.tmp`."""

LONGEST_PATH = 4095


def refuse_unusable(place: Path, what: str) -> None:
    """Refuse a place where no file or folder can be made; `what` names the key or option that says
    it.

    Raises: UsageError with the reason.
    """
    refuse_name(place, what)
    nearest = next(
        folder for folder in (place, *place.absolute().parents) if os.path.lexists(folder)
    )
    if nearest != place and not nearest.is_dir():
        kind = "a file" if nearest.exists() else "a link to nothing"
        raise UsageError(
            f"{what}: {nearest} is {kind}, so {place} cannot be made", "choose another place"
        )
    folder = nearest if nearest.is_dir() else nearest.absolute().parent
    try:
        probe = tempfile.mkdtemp(prefix=".probe.", suffix=f".{os.getpid()}.tmp", dir=folder)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(
            f"{what}: nothing can be made in {folder}: {reason}",
            "choose a place on a disk that you may write to",
        ) from error
    with suppress(OSError):
        os.rmdir(probe)


def refuse_name(place: Path, what: str) -> None:
    """Refuse a path that no file system takes: with a NUL, or too long for what is added to it.

    Raises: UsageError.
    """
    text = str(place)
    if "\0" in text:
        raise UsageError(
            f"{what}: {text!r} holds a NUL character, which no name may", "leave it out"
        )
    try:
        encoded = [os.fsencode(part) for part in place.absolute().parts]
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what}: {text!r} cannot be written in this system's encoding", "use plain letters"
        ) from error
    longest = max(encoded, key=len)
    if (
        len(longest) > LONGEST_NAME - SPARE
        or sum(map(len, encoded)) + len(encoded) > LONGEST_PATH - LONGEST_NAME
    ):
        shown = os.fsdecode(longest[:40])
        raise UsageError(
            f"{what}: the name is too long: `{shown}...` has {len(longest):,} bytes, the path "
            f"{len(os.fsencode(text)):,}",
            f"keep each part below {LONGEST_NAME - SPARE} bytes",
        )


def make_room(file: Path, what: str) -> None:
    """Find out, before the work, whether there is a place for the file that it gives; make the
    folder that it goes to.

    Raises: UsageError.
    """
    refuse_unusable(file, what)
    if file.is_dir():
        raise UsageError(f"{what}: {file} is a folder", "name a file")
    file.parent.mkdir(parents=True, exist_ok=True)


def way_out(folder: Path, *, is_staged: bool) -> str:
    """Say what to do about a run that is there already. `is_staged`: it takes changed settings."""
    continues = "--resume to continue it, "
    if (folder / "manifest.json").is_file():
        continues = "--resume to carry out changed settings, " if is_staged else ""
    return f"add {continues}--overwrite to start again from nothing, or choose another output_dir"
