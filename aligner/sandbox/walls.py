"""The walls around a worker: limits, another user, no files, no network, no further calls.

Run in the worker's own process, once the function is open and before the first call; what is given
up here cannot be had back. Each part says "yes", or why this machine could not build it. None of
them is a defence against a hole in the kernel. Imports the standard library alone, beside its
siblings.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.machinery
import math
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from aligner.sandbox import mounts
from aligner.sandbox.kernel import ABSENT, call_kernel
from aligner.sandbox.seccomp import filter_calls

FIRST_OWN_USER = 1_000_000_000
SHARED_BYTES = 64 * 2**20
OPEN_FILES = 256
"""What a process may hold open at a time: pipes and pairs of sockets keep what is written to
them in the kernel's memory."""

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38
_PR_CAP_AMBIENT, _RAISE = 47, 2
_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_FOWNER = 0, 1, 2, 3
_NOBODY = 65534
_SYS_LANDLOCK = 444  # create_ruleset; add_rule and restrict_self follow; the same on all machines
_LANDLOCK_WRITING = (
    0x1FF2,
    0x3FF2,
    0x7FF2,
)  # for versions 1, 2, 3 and later: all that changes a file or a folder
_LANDLOCK_READING = 0xC  # read a file, list a folder
_LANDLOCK_OF_FILES = 0x4007  # of all rights those that a rule for a single file may name
_SYSTEM = (
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store"),
    *(f"/usr/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64", "libexec", "include")),
    *(f"/usr/local/{name}" for name in ("bin", "lib", "lib64")),
    *(f"/usr/share/{name}" for name in ("zoneinfo", "locale", "i18n", "terminfo", "mime", "fonts")),
    *(f"/dev/{name}" for name in ("null", "zero", "random", "urandom")),
    *(f"/etc/{name}" for name in ("ld.so.cache", "localtime", "timezone", "os-release")),
    *(f"/etc/{name}" for name in ("passwd", "group", "nsswitch.conf", "mime.types")),
    "/sys/devices/system",
)
"""What programs read anywhere: the system's libraries, clocks, names of users. No secrets lie
there, and no data: `/usr/src`, `/usr/share` and `/usr/local` as a whole may hold a project."""
_OF_MACHINE = tuple(
    f"/proc/{name}"
    for name in ("self", "cpuinfo", "meminfo", "stat", "uptime", "loadavg", "version", "sys/kernel")
)
"""What is read of /proc where it shows other processes, too."""
_OF_PREFIX = ("bin", "lib", "lib32", "lib64", "include", "pyvenv.cfg")
"""What belongs to Python in the folder that it is installed in; a project may be the rest."""


def end_with_parent() -> None:
    """Linux ends this process when the one above it ends, however that happens; also no setuid
    programs from here."""
    call_kernel("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    call_kernel("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def shut_in(
    folder: str, limits: dict[str, Any], walls: dict[str, str], closed: list[str]
) -> dict[str, str]:
    """Give up everything that calls do not need. `walls` says what stands already, and `closed`
    names files that must not be read wherever they lie. Returns part -> "yes" or why not."""
    # When the machine's memory is short, this process is ended, and not one that is needed.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    counts_for_itself = walls["descendants"] == "yes" and os.geteuid() != 0
    tasks = _tasks_of_users()
    files = _Files(folder, closed)
    if walls["descendants"] == "yes" and not limits["user_files"]:
        files.mount()
    found = {"user": _drop_privileges(folder, limits["user_files"])}
    end_with_parent()  # a change of user undoes it
    allowed = _processes_allowed(limits["processes"], counts_for_itself, tasks)
    found.update(_set_limits(limits, allowed))
    if os.geteuid() == 0:
        found["processes"] = "the superuser's are not limited"
    found.update(_close(files, limits, walls["network"]))
    return found


def _close(files: _Files, limits: dict[str, Any], network: str) -> dict[str, str]:
    """Close the user's files, and calls of the kernel, or only TCP where that is asked for."""
    if limits["user_files"]:
        found = dict.fromkeys(("reading", "writing", "sockets", "memory files"), "not asked for")
        if network not in ("yes", "not asked for"):
            said = _landlock(None, network=True)
            if said == "yes" and _landlock_version() >= 4:
                found["network"] = f"TCP is closed, other ways are not: {network}"
        return found
    landlock = _landlock(files, network=network != "yes")
    files_said = "yes" if files.are_hidden else landlock
    is_owner = not files.are_hidden and os.geteuid() < FIRST_OWN_USER
    called = filter_calls(sockets=network == "yes", attributes=not is_owner)
    found = {"reading": files_said, "writing": files_said}
    if is_owner and files_said == "yes" and called != "yes":
        found["writing"] = f"their rights and times are open: {called}"
    found |= {"sockets": called, "memory files": called}
    if network not in ("yes", "not asked for"):
        found["network"] = "yes" if called == "yes" else network
    return found


class _Files:
    """What a worker may read and write, and how much of that is settled by mounts of its own."""

    def __init__(self, folder: str, closed: list[str]) -> None:
        self.folder = folder
        self.closed = [os.path.realpath(path) for path in closed]
        self.listed: list[str] = []
        """Folders whose names may be read, since a closed file lies below them."""
        self.has_processes = self.has_shared = self.are_hidden = False

    def mount(self) -> None:
        """Mount what the worker has for itself. Also all that it may read, where Landlock is not
        there, or leaves rights and times of files open to the user whose they are."""
        if mounts.leave_mounts() != "yes":
            return
        self.has_processes = mounts.own_processes() == "yes"
        self.has_shared = mounts.own_shared_memory(SHARED_BYTES) == "yes"
        if not _landlock_version() or os.geteuid() != 0:
            shared = [mounts.SHARED] if self.has_shared else []
            self.are_hidden = mounts.only_these(self.readable(), shared, self.folder) == "yes"

    def readable(self) -> list[str]:
        """Places that are there and may be read, with all that lies beneath them."""
        libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
        machine = (mounts.PROCESSES,) if self.has_processes else _OF_MACHINE
        wanted = {*_SYSTEM, *machine, *_python_folders(), *libraries}
        found = []
        for place in sorted(wanted):
            if place and os.path.exists(place):
                found += self._without_closed(place)
        return found

    def _without_closed(self, place: str) -> list[str]:
        """The place itself, or the parts of it that hold no closed file."""
        real = os.path.realpath(place)
        inside = [path for path in self.closed if (path + "/").startswith(real + "/")]
        if not inside:
            return [place]
        if real in inside:
            return []
        self.listed.append(real)
        found = []
        for entry in os.scandir(real):
            if not entry.is_symlink():  # what it leads to has rights of its own
                found += self._without_closed(entry.path)
        return found


def _drop_privileges(folder: str, user_files: bool) -> str:
    """A superuser becomes somebody whom limits on processes hold: a user of the worker's own, else
    nobody.

    What is kept is the right to read all files, where Python lies in a folder that is closed to
    others (below /root, say): modules that are loaded late would fail otherwise. With `user_files`,
    all rights over files are kept.
    """
    if os.geteuid() != 0:
        _keep_rights(())  # a user namespace has given it all of them, over that namespace
        return "yes"
    kept: tuple[int, ...] = () if _is_open() else (_CAP_DAC_READ_SEARCH,)
    if user_files:
        kept = (_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_FOWNER)
    call_kernel("prctl", _PR_SET_KEEPCAPS, int(bool(kept)), 0, 0, 0)
    try:
        _change_user(folder)
    except OSError as error:
        return str(error)
    if not kept:
        return "yes"
    _keep_rights(kept)
    if user_files:
        return "no superuser, but with its rights over files"
    return (
        "no superuser, but with the right to read all files: the folder of Python is closed to "
        "others"
    )


def _is_open() -> bool:
    """Whether everybody can read what Python loads: its own files, and those of packages."""
    loaded = (
        getattr(sys.modules.get(name), "__file__", None) for name in ("os", "torch", "__main__")
    )
    files = [Path(file).resolve() for file in (*loaded, *sys.path) if file and os.path.exists(file)]
    return all(parent.stat().st_mode & 0o001 for file in files for parent in file.parents)


def _change_user(folder: str) -> None:
    os.setgroups([])
    own = FIRST_OWN_USER + int.from_bytes(os.urandom(4), "big") % FIRST_OWN_USER
    for user in (own, _NOBODY):
        try:
            os.chown(folder, user, _NOBODY)
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(user, user, user)
            return
        except OSError:
            if user == _NOBODY:
                raise


def _keep_rights(rights: tuple[int, ...]) -> None:
    """capset(2), version 3: these capabilities, effective and permitted, and kept by programs that
    are started."""
    mask = sum(1 << right for right in rights)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    said = call_kernel("capset", header, sets)
    if said != "yes" and rights:
        raise OSError(f"capset: {said}")
    for right in rights:
        call_kernel("prctl", _PR_CAP_AMBIENT, _RAISE, right, 0, 0)


def _processes_allowed(further: int, counts_for_itself: bool, tasks: dict[int, int]) -> int:
    """What the limit on processes is set to, so that `further` can be started: it counts all of a
    user's, with threads.

    The user of a worker's own has this process alone. A user namespace counts for itself (Linux
    5.14 and newer), and holds keeper and init beside it. Elsewhere the user's other processes are
    counted as they are now.
    """
    if not further:
        return 0
    if os.geteuid() >= FIRST_OWN_USER:
        return _own_threads() + further
    release = os.uname().release.split("-")[0].split(".")[:2]
    kernel = tuple(int(part) for part in release if part.isdigit())
    if counts_for_itself and kernel >= (5, 14):
        return 2 + _own_threads() + further
    return tasks.get(os.geteuid(), 0) + further


def _own_threads() -> int:
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1


def _tasks_of_users() -> dict[int, int]:
    """How many processes and threads each user has."""
    found: dict[int, int] = {}
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            user, count = os.stat(folder).st_uid, len(os.listdir(f"{folder}/task"))
        except OSError:
            continue
        found[user] = found.get(user, 0) + count
    return found


def _set_limits(limits: dict[str, Any], processes: int) -> dict[str, str]:
    """Limits on top of what opening the function has taken."""
    statm = Path("/proc/self/statm")
    taken = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    memory = taken + limits["memory_bytes"]
    wanted = {
        "memory": (resource.RLIMIT_AS, memory, memory),
        "files": (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        "core": (resource.RLIMIT_CORE, 0, 0),
        "processes": (resource.RLIMIT_NPROC, processes, processes),
    }
    if not limits["user_files"]:
        most = min(OPEN_FILES, *(n for n in resource.getrlimit(resource.RLIMIT_NOFILE) if n >= 0))
        wanted["open files"] = (resource.RLIMIT_NOFILE, most, most)
    if limits["cpu_s"] is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_limit_s = math.ceil(usage.ru_utime + usage.ru_stime + limits["cpu_s"])
        wanted["cpu"] = (resource.RLIMIT_CPU, cpu_limit_s, cpu_limit_s + 1)
    found = {}
    for part, (limit, soft, hard) in wanted.items():
        try:
            resource.setrlimit(limit, (soft, hard))
            found[part] = "yes"
        except (ValueError, OSError) as error:
            found[part] = str(error)
    return found


def _landlock_version() -> int:
    """Which version of Landlock the kernel offers: 0 for none."""
    if not sys.platform.startswith("linux") or "landlock" in ABSENT:
        return 0
    return max(
        0, ctypes.CDLL(None, use_errno=True).syscall(_SYS_LANDLOCK, None, ctypes.c_size_t(0), 1)
    )


def _landlock(files: _Files | None, network: bool) -> str:
    """Change no file outside the folder, read none but the folder's and what Python and the system
    need, open no TCP connection, signal no process outside: from here on, for good.

    An ordinary user can have this too, and in a container that has no namespaces; it needs Linux
    5.13, for all of it 6.12.
    """
    version = _landlock_version()
    if not version:
        return "this system has no Landlock"
    writing = _LANDLOCK_WRITING[min(version, 3) - 1] if files is not None else 0
    reading = _LANDLOCK_READING if files is not None else 0
    words = [writing | reading, 3 if network else 0, 3][
        : 1 if version < 4 else 2 if version < 6 else 3
    ]
    if not any(words):
        return "not asked for"
    attribute = (ctypes.c_uint64 * len(words))(*words)
    library = ctypes.CDLL(None, use_errno=True)
    rules = library.syscall(_SYS_LANDLOCK, attribute, ctypes.c_size_t(ctypes.sizeof(attribute)), 0)
    if rules < 0:
        return os.strerror(ctypes.get_errno())
    try:
        for place, rights in _allowed(files, writing, reading) if files is not None else ():
            _landlock_allow(
                library,
                rules,
                place,
                rights if os.path.isdir(place) else rights & _LANDLOCK_OF_FILES,
            )
        said = (
            "yes"
            if library.syscall(_SYS_LANDLOCK + 2, rules, 0) == 0
            else os.strerror(ctypes.get_errno())
        )
    finally:
        os.close(rules)
    return said


def _allowed(files: _Files, writing: int, reading: int) -> list[tuple[str, int]]:
    """Places that are there, and the rights over what lies beneath them."""
    readable = files.readable()
    found = [(place, reading) for place in readable]
    found += [(place, reading & ~4) for place in files.listed]  # to list, not to read
    if files.has_shared:
        found.append((mounts.SHARED, writing | reading))
    return [*found, (files.folder, writing | reading), (os.devnull, writing & 0x4002)]


def _python_folders() -> set[str]:
    """Where Python, installed packages, and what is loaded already lie; of the rest of its path
    nothing is needed.

    The path of the process that started this one may hold its working directory: a project, with
    its keys and data.
    """
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    above = os.path.dirname(os.path.dirname(os.path.abspath(sys.executable)))
    if os.path.exists(os.path.join(above, "pyvenv.cfg")):  # without `site`, no prefix names it
        prefixes.add(above)
    found = {os.path.join(prefix, name) for prefix in prefixes for name in _OF_PREFIX}
    found.add(os.path.dirname(os.__file__))
    for entry in sys.path:
        is_installed = os.path.basename(entry) in ("site-packages", "dist-packages")
        if is_installed or (entry and glob.glob(os.path.join(glob.escape(entry), "*.dist-info"))):
            found.add(entry)
    for module in list(sys.modules.values()):
        spec = vars(module).get("__spec__")  # by the dictionary: some modules answer to every name
        if isinstance(spec, importlib.machinery.ModuleSpec):
            inside = tuple(found)
            places = [
                *(spec.submodule_search_locations or ()),
                *([spec.origin] if spec.has_location else []),
            ]
            found.update(place for place in places if place and not place.startswith(inside))
    return {os.path.realpath(place) for place in found}


def _landlock_allow(library: ctypes.CDLL, rules: int, place: str, rights: int) -> None:
    class Beneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("rights", ctypes.c_uint64), ("place", ctypes.c_int32))

    number = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        library.syscall(_SYS_LANDLOCK + 1, rules, 1, ctypes.byref(Beneath(rights, number)), 0)
    finally:
        os.close(number)
