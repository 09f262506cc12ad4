"""One writer for a directory: a small file that says which process holds it.

A lock left by a kill is taken over without asking. Whether its process is gone is decided by the
first of these that can tell:

* The holder also locks the file through the operating system (`flock`), which ends with the
  process, whatever it is called: the kernel that it runs on knows, also from another container or
  under another host name. So does a network disk that passes such locks on.
* Where the disk has no such locks, the number of the process and the moment it began, for a
  process of this kernel that we can see.
* For all others the file's time, which its holder sets again every `BEAT_S` seconds: after
  `STALE_S` seconds without that, by the clock of the disk, the holder counts as gone. One that was
  only suspended for so long notices that it lost the lock and stops.

It guards against a second start by mistake; it does not arbitrate between two machines that start
in the same millisecond on a network disk.
"""

from __future__ import annotations

import _thread
import json
import os
import platform
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from aligner.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = "lock"
BEAT_S = 20.0
STALE_S = 300.0

_held: dict[Path, int | None] = {}
"""Lock that this process holds -> the open file that the system's lock is on, where there is
one."""
_lost: list[Path] = []
_beating: list[threading.Thread] = []
"""The thread that sets the times, once there is one."""


def acquire_lock(folder: Path) -> str:
    """Take the folder's lock; a sentence when it was taken over from a dead process, else an empty
    string."""
    path = folder.absolute() / LOCK_NAME
    note = ""
    for _ in range(3):
        if _create(path):
            return note
        holder = _read(path)
        if _is_mine(holder):
            return note
        if holder is None and _is_flocked(path):
            continue  # whoever has made it did not get to write yet
        if holder is not None and _may_be_alive(path, holder):
            raise _in_use(folder, path, holder)
        note = _take_away(path, holder)
    raise UsageError(
        f"{folder} is being opened by another process", "try again when that one is done"
    )


def release_lock(folder: Path) -> None:
    """Give the lock back, if it is this process that holds it."""
    path = folder.absolute() / LOCK_NAME
    handle = _held.pop(path, None)
    if path.exists() and _is_mine(_read(path)):
        path.unlink()
    if handle is not None:
        os.close(handle)


def release_locks() -> None:
    """Give back all locks that this process holds: it is about to end."""
    for path in list(_held):
        release_lock(path.parent)


def is_held(folder: Path) -> bool:
    """Say whether a process works on a folder, as far as can be told; changes nothing."""
    path = folder.absolute() / LOCK_NAME
    holder = _read(path)
    return holder is not None and _may_be_alive(path, holder)


def lost_locks() -> list[Path]:
    """Return the folders that another process took over while this one was suspended."""
    return [path.parent for path in _lost]


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "process_began": _process_began(os.getpid()),
        "boot": _boot(),
        "pid_namespace": _pid_namespace(),
    }


def _is_mine(holder: dict[str, Any] | None) -> bool:
    return holder is not None and holder.items() >= _me().items()


def _create(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except FileExistsError:
        return False
    has_flock = _flock(handle)
    me = {**_me(), "flock": has_flock, "device": os.fstat(handle).st_dev, "beat_s": BEAT_S}
    try:
        os.write(handle, json.dumps(me).encode())
    except OSError:
        os.close(handle)
        path.unlink()
        raise
    if not has_flock:
        os.close(handle)
    _held[path] = handle if has_flock else None
    _start_beating()
    return True


def _flock(handle: int) -> bool:
    """Lock an open file through the system, and say whether the disk can."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
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


# --- whether a holder is gone ---------------------------------------------------------------------


def _may_be_alive(path: Path, holder: dict[str, Any]) -> bool:
    here = _is_of_this_kernel(holder)
    if _is_flocked(path):
        return True
    if here and holder.get("flock") and holder.get("device") == _device(path):
        return False
    if here and holder.get("pid_namespace", _pid_namespace()) == _pid_namespace():
        return _process_lives(holder)
    return "beat_s" not in holder or _silence_s(path) < STALE_S


def _is_of_this_kernel(holder: dict[str, Any]) -> bool:
    """Whether a holder runs, or ran, since this machine was started; by its name alone where
    nothing else was noted."""
    if holder.get("boot") and _boot():
        return bool(holder["boot"] == _boot())
    return bool(holder.get("host") == platform.node())


def _is_flocked(path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except FileNotFoundError:
        return None


def _process_lives(holder: dict[str, Any]) -> bool:
    pid = int(holder["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists and belongs to somebody else
    return _process_began(pid) == holder.get("process_began")


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


def _boot() -> str:
    """Which start of which machine this is; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    """Which processes have numbers of their own here; empty where the system does not say."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _silence_s(path: Path) -> float:
    """Seconds since a lock's time was set, by the clock of its disk."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:  # given back meanwhile
        return STALE_S
    finally:
        probe.unlink()


def _take_away(path: Path, holder: dict[str, Any] | None) -> str:
    """Remove a dead process's lock by renaming it, so that of two who try only one succeeds; a new
    one that another process made meanwhile is put back."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return ""
    if _read(aside) != holder:
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink()
    who = f"process {holder['pid']}" if holder else "a process"
    return f"{who} that no longer runs had left its lock; it was taken over"


def _in_use(folder: Path, path: Path, holder: dict[str, Any]) -> UsageError:
    is_named_so = holder.get("host") == platform.node()
    where = "" if is_named_so else f" on {holder.get('host')}"
    who = f"{folder} is in use by process {holder['pid']}{where}"
    if _is_of_this_kernel(holder):
        return UsageError(who, "wait for it or stop it")
    if "beat_s" not in holder:
        return UsageError(who, f"if that process is gone, delete {path} and start again")
    return UsageError(
        f"{who}, whose last sign of life is {max(0.0, _silence_s(path)):.0f} s ago",
        f"wait for it or stop it; if it is gone, its lock ends {STALE_S / 60:.0f} minutes after "
        "that sign",
    )


# --- the sign of life -----------------------------------------------------------------------------


def _start_beating() -> None:
    if not _beating:
        thread = threading.Thread(target=_beat, name="lock-beat", daemon=True)
        _beating.append(thread)
        thread.start()


def _beat() -> None:
    while True:
        time.sleep(BEAT_S)
        for path in list(_held):
            with suppress(OSError):
                _set_time(path)


def _set_time(path: Path) -> None:
    """Set the time of a lock; end the work of this process where another one has the lock now."""
    holder = _read(path)
    if _is_mine(holder):
        os.utime(path)
    elif holder is not None and path in _held:
        _held.pop(path)
        _lost.append(path)
        _end_work()


def _end_work() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        if callable(signal.getsignal(number)):
            _thread.interrupt_main(number)
            return
    os.kill(os.getpid(), signal.SIGTERM)


def _forget() -> None:
    """A fork of this process holds nothing."""
    for handle in _held.values():
        if handle is not None:
            os.close(handle)
    _held.clear()
    _beating.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
