"""Mounts of a worker's own: its processes, its shared memory, and, where there is no Landlock, the
files that it may read.

They need a superuser or a user namespace. What is mounted here is seen by the worker and by what it
starts, and goes with them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping, Sequence

from aligner.sandbox.kernel import CLONE_NEWNS, call_kernel

SHARED = "/dev/shm"
PROCESSES = "/proc"

_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 32, 4096, 16384, 1 << 18
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PLAIN = _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS


def leave_mounts() -> str:
    """Go where new mounts are nobody else's: "yes", or why not."""
    said = call_kernel("unshare", CLONE_NEWNS)
    return _mount("", "/", "", _RECURSIVE | _PRIVATE) if said == "yes" else said


def own_processes() -> str:
    """Show the processes of this namespace alone in /proc."""
    return _mount("proc", PROCESSES, "proc", _PLAIN)


def own_shared_memory(size_bytes: int) -> str:
    """A small shared memory that is empty, for locks and queues of `multiprocessing`."""
    said = _mount("tmpfs", SHARED, "tmpfs", _PLAIN, f"mode=1777,nr_inodes=1k,size={size_bytes}")
    if said == "yes" and not os.access(SHARED, os.W_OK):
        return "it cannot be written"
    return said


def only_these(readable: Iterable[str], writable: Sequence[str], folder: str) -> str:
    """Make these places, and the folder, all the files that there are. From inside, nothing leads
    back. "yes", or why everything is as it was."""
    machine = os.uname().machine
    if machine not in _PIVOT_ROOT:
        return f"not on {machine}"
    names = {place: os.path.realpath(place) for place in (*readable, folder)}
    folder = names[folder]
    writable = [os.path.realpath(place) for place in (*writable, folder, os.devnull)]
    places = {place: os.open(place, os.O_PATH) for place in {*names.values(), *writable}}
    before = os.umask(0o022)
    is_mounted = False
    try:
        said = _mount("tmpfs", folder, "tmpfs", _NO_SETUID | _NO_DEVICES, "mode=755,size=4m")
        is_mounted = said == "yes"
        for place in sorted(places):  # what holds others comes before them
            if said == "yes":
                said = _show(place, places[place], folder, is_writable=place in writable)
        if said == "yes":
            _link(names, folder)
            said = _enter(folder, _PIVOT_ROOT[machine])
    except OSError as error:
        said = str(error)
    finally:
        os.umask(before)
        for number in places.values():
            os.close(number)
    if is_mounted and said != "yes":
        call_kernel("umount2", os.fsencode(folder), _DETACH)
    return said


def _show(place: str, number: int, root: str, is_writable: bool) -> str:
    """What this number is open at, below a new root under its old name."""
    target = root + place
    if os.path.lexists(target) and not is_writable:
        return "yes"  # it lies below one that was shown before
    _make_target(target, os.path.isdir(f"/proc/self/fd/{number}"))
    # the new root is mounted upon the folder itself, and would be shown in it as well
    flags = _BIND if place == root else _BIND | _RECURSIVE
    said = _mount(f"/proc/self/fd/{number}", target, "", flags)
    if said != "yes" or is_writable:
        return said
    kept = os.statvfs(target).f_flag & (_NO_SETUID | _NO_DEVICES | _NO_PROGRAMS)
    return _mount("", target, "", _REMOUNT | _BIND | _READ_ONLY | kept)


def _link(names: Mapping[str, str], root: str) -> None:
    """Let places that are links be links below the new root, too."""
    for name, place in names.items():
        if name != place and not os.path.lexists(root + name):
            os.makedirs(os.path.dirname(root + name), exist_ok=True)
            os.symlink(place, root + name)


def _make_target(target: str, is_folder: bool) -> None:
    """Something to mount upon."""
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
    if not is_folder and not os.path.lexists(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))


def _enter(root: str, number: int) -> str:
    """Make a folder the root, and let go of the one before."""
    os.chdir(root)
    said = call_kernel("syscall", number, b".", b".")
    if said == "yes":
        said = call_kernel("umount2", b".", _DETACH)
    if said == "yes":
        flags = _REMOUNT | _BIND | _READ_ONLY | _NO_SETUID | _NO_DEVICES
        said = _mount("", "/", "", flags)
    os.chdir(root)  # the folder of that name in the new root
    return said


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> str:
    words = [ctypes.c_char_p(os.fsencode(word)) for word in (source, target, kind, options)]
    return call_kernel("mount", *words[:3], ctypes.c_ulong(flags), words[3])
