"""One writer for a directory: a small file that says which process holds it.

The file names process, machine and the moment the process began, so a lock left by a kill is
recognized (that process is gone, or its number now belongs to another) and taken over without
asking. On another machine nothing can be known about the holder: the lock is then respected and the
message says what to do. It guards against a second start by mistake; it does not arbitrate between
two machines that start in the same millisecond on a network disk.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from aligner.errors import UsageError

LOCK_NAME = "lock"


def acquire_lock(folder: Path) -> str:
    """Take the folder's lock; a sentence when it was taken over from a dead process, else an empty
    string."""
    path = folder / LOCK_NAME
    note = ""
    for _ in range(3):
        if _create(path):
            return note
        holder = _read(path)
        if holder == _me():
            return note
        if holder is not None and _may_be_alive(holder):
            raise _in_use(folder, path, holder)
        note = _take_away(path, holder)
    raise UsageError(
        f"{folder} is being opened by another process", "try again when that one is done"
    )


def release_lock(folder: Path) -> None:
    """Give the lock back, if it is this process that holds it."""
    path = folder / LOCK_NAME
    if path.exists() and _read(path) == _me():
        path.unlink()


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "process_began": _process_began(os.getpid()),
    }


def _create(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(_me(), file)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds the lock; None for a lock that says nothing even after its writer had time to
    write."""
    for _ in range(10):
        try:
            holder = json.loads(path.read_text(encoding="utf-8"))
            if (
                isinstance(holder, dict)
                and isinstance(holder.get("pid"), int)
                and 0 < holder["pid"] < 2**31
            ):
                return holder
        except FileNotFoundError:
            return None
        except IsADirectoryError as error:
            raise UsageError(
                f"{path} is a folder where the lock belongs", "move it away"
            ) from error
        except ValueError:
            pass
        time.sleep(0.05)
    return None


def _process_began(pid: int) -> str:
    """A mark that tells a process from a later one with the same number; empty where the system has
    none to give.

    A process that has ended and waits for its parent to take notice (a zombie) has another mark
    than when it lived.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "ended" if fields[0] == "Z" else fields[19]


def _may_be_alive(holder: dict[str, Any]) -> bool:
    if holder.get("host") != platform.node():
        return True
    pid = int(holder["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists and belongs to somebody else
    return _process_began(pid) == holder.get("process_began")


def _take_away(path: Path, holder: dict[str, Any] | None) -> str:
    """Remove a dead process's lock by renaming it, so that of two who try only one succeeds."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return ""
    aside.unlink()
    who = f"process {holder['pid']}" if holder else "a process"
    return f"{who} that no longer runs had left its lock; it was taken over"


def _in_use(folder: Path, path: Path, holder: dict[str, Any]) -> UsageError:
    same = holder.get("host") == platform.node()
    where = "" if same else f" on {holder.get('host')}"
    hint = (
        "wait for it or stop it"
        if same
        else f"if that process is gone, delete {path} and start again"
    )
    return UsageError(f"{folder} is in use by process {holder['pid']}{where}", hint)
