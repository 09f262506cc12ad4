"""The cache of what only costs time to compute again: `$ALIGNER_CACHE`, else `~/.cache/aligner`.

A kept file has its checksum beside it (`NAME.sha256`). One that is damaged, or has lost its
checksum, counts as not there: it is computed again, with a remark. Two processes may keep the same
file at once; at worst it is computed once more. A cache that cannot be written to is refused by
`check_cache` before anything is computed for it; one that is only read need not be writable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aligner.errors import UsageError
from aligner.events import OnEvent, Warned, tell
from aligner.runs.files import file_sha256, mode_of_new_files, write_atomically
from aligner.runs.places import refuse_unusable


def cache_folder(name: str) -> Path:
    """Return the folder of one kind of them: `reference`, `rewards`, `samples`, `judge`, `oracle`,
    `crashes`."""
    root = os.environ.get("ALIGNER_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "aligner") / name


PROBE_BYTES = 1 << 20
OLD_S = 24 * 3600.0
"""The age of what a kill left half written."""


def check_cache(file: Path) -> None:
    """Raise UsageError where a file could not be kept, with the reason: to be asked before it is
    computed."""
    refuse_unusable(file.parent, "the cache ($ALIGNER_CACHE)")
    file.parent.mkdir(parents=True, exist_ok=True)
    probe = file.with_name(f".probe.{os.getpid()}.tmp")
    try:
        with open(probe, "wb") as stream:
            stream.write(bytes(PROBE_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise UsageError(
            f"the cache ($ALIGNER_CACHE): nothing can be written to {file.parent}: "
            f"{error.strerror}",
            "free some space there, or name another folder",
        ) from error
    finally:
        probe.unlink(missing_ok=True)


def is_kept(file: Path, on_event: OnEvent | None = None) -> bool:
    """Say whether a file is there and is what was kept; of one that is something else, the listener
    hears."""
    if not file.is_file():
        return False
    checksum = _checksum_of(file)
    if checksum.is_file() and checksum.read_bytes().strip() == file_sha256(file).encode():
        return True
    what = "is damaged" if checksum.is_file() else "has lost its checksum"
    tell(on_event, Warned(f"{file} {what}: what it holds is computed again"))
    return False


def keep(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, and give it its name; a reader finds all of it or
    nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(file.parent)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        write(unfinished)
        unfinished.chmod(mode_of_new_files(file.parent))
        write_atomically(_checksum_of(file), f"{file_sha256(unfinished)}\n")
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a kill left half written long ago: our temporary files and those of
    safetensors."""
    for path in folder.glob(".*tmp*"):
        with suppress(OSError):  # another process is as quick
            if time.time() - path.stat().st_mtime > OLD_S:
                path.unlink()


def _checksum_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
