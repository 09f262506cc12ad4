"""The process behind `aligner.sandbox.worker`: confine this process, then answer calls one by one.

This file is run as a script by its path, in a fresh interpreter, so all of it is one file, and
imports the standard library alone. Its first line of input says which function to open
("module:function" or "/path/to/file.py:function"), with what, and within which limits. What that
function returns is called with the payload of every further line, and its result is written back.

    keeper   the process that was started: it stays outside, and when the worker or the parent is
             gone it ends what is left
             and removes the worker's folder
    init     in a process namespace of its own, where the system allows one: when it ends, the
             kernel ends all in it
    worker   opens the function, then gives up what it has (network, user, memory, processes,
             files), then takes calls

Which walls could be built on this machine is in the second line of output, part -> "yes" or why
not. None of them is a defence against a hole in the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import importlib
import importlib.machinery
import importlib.util
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

Job = Callable[[Any], Any]

MAX_ERROR_CHARACTERS = 2_000
FIRST_OWN_USER = 1_000_000_000
LOOK_EVERY_S = 1.0
END_REST_S = 5.0

_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 8, 36, 38
_PR_SET_SECCOMP = 22
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
_READABLE = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/proc", "/sys/devices/system"),
    *(
        "/dev/null",
        "/dev/zero",
        "/dev/random",
        "/dev/urandom",
        "/etc/ld.so.cache",
        "/etc/localtime",
    ),
    *(
        "/etc/timezone",
        "/etc/os-release",
        "/etc/passwd",
        "/etc/group",
        "/etc/nsswitch.conf",
        "/etc/mime.types",
    ),
)
"""What programs read anywhere: the system's libraries, clocks, names of users. No secrets lie
there."""
_SYSTEM_CALLS = {"x86_64": (0xC000003E, 41, 425), "aarch64": (0xC00000B7, 198, 425)}
"""Machine -> its number for audits, and those of `socket` and `io_uring_setup`."""
_STARTS_PROCESSES = {"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}

_started_processes = False


def main() -> None:
    """Reads the request, becomes the worker, and serves."""
    source = os.fdopen(os.dup(0), "rb")
    line = source.readline()
    if not line:  # the parent ended before it could ask for anything
        return
    request = json.loads(line)
    # The pipe to the parent, under a number of its own; what a job prints goes to the error stream.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _nothing_onto(0)
    try:  # made here, and not by the parent, which can be killed between making and starting
        os.mkdir(request["folder"], 0o700)
        if request["is_home"]:
            os.chdir(request["folder"])
    except OSError as error:
        _write(output, {"failure": f"its temporary folder could not be made: {error}"})
        return
    own = [str(Path(__file__).parent), *request["path"]]
    sys.path[:] = [*request["path"], *(entry for entry in sys.path if entry not in own)]
    walls = _become_worker(request, output)
    try:
        job = _load(request["factory"])(request["setup"])
    except Exception as error:  # what is opened may be a user's code
        _write(output, {"failure": describe(error)})
        return
    walls.update(_shut_in(request, walls))
    _write(output, {"isolation": walls})
    _serve(job, source, output, request["limits"])


def _load(name: str) -> Callable[[Any], Job]:
    """The function "module:function" or "/path/to/file.py:function"."""
    place, _, function = name.rpartition(":")
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), function)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert spec is not None, place
    assert spec.loader is not None, place
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


# --- serving --------------------------------------------------------------------------------------


def _serve(job: Job, source: IO[bytes], output: IO[bytes], limits: dict[str, Any]) -> None:
    """Answer every line of input with one line, under the number that came with it."""
    sys.addaudithook(_note_processes)
    me = os.getpid()
    for line in source:
        call = json.loads(line)
        answer = _answer(job, call["payload"], limits)
        if os.getpid() != me:
            os._exit(
                0
            )  # a copy that the job has made of this process, and that has come back from it
        answer["dirty"] = _started_processes and _has_left_processes()
        _write(output, {"id": call["id"], **answer})


def _note_processes(event: str, _: tuple[Any, ...]) -> None:
    global _started_processes
    if event in _STARTS_PROCESSES:
        _started_processes = True


def _has_left_processes() -> bool:
    """Whether processes that a job has started are still there; those that have ended are cleared
    away."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _answer(job: Job, payload: Any, limits: dict[str, Any]) -> dict[str, Any]:
    """What the job gives, or its error as text, or which limit it met: this is the boundary."""
    too_much = f"it needed more than {limits['memory_bytes'] / 2**20:.0f} MiB of memory"
    try:
        result = job(payload)
        json.dumps(result, allow_nan=False)
    except MemoryError:
        return {"stopped": too_much}
    except Exception as error:
        text = describe(error)
        if "can't allocate memory" in text:
            return {"stopped": too_much}
        if _is_about_processes(error):
            return {"stopped": f"it started more than {limits['processes']} processes or threads"}
        return {"error": text}
    return {"result": result}


def _is_about_processes(error: BaseException) -> bool:
    if isinstance(error, BlockingIOError):
        return _started_processes and error.errno == errno.EAGAIN
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def describe(error: BaseException) -> str:
    """An error as "Type: text", of bounded length, even where the error's own text cannot be
    had."""
    try:
        return f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]
    except Exception:  # the text of an error is made by the code that raised it
        return type(error).__name__[:MAX_ERROR_CHARACTERS]


def _nothing_onto(*numbers: int) -> None:
    with open(os.devnull, "r+b", buffering=0) as nothing:
        for number in numbers:
            os.dup2(nothing.fileno(), number)


def _write(output: IO[bytes], answer: dict[str, Any]) -> None:
    output.write(json.dumps(answer, allow_nan=False).encode() + b"\n")
    output.flush()


# --- keeper, init and worker ----------------------------------------------------------------------


def _become_worker(request: dict[str, Any], output: IO[bytes]) -> dict[str, str]:
    """Fork until this is the worker; the processes above it never come back from here."""
    # Namespaces of this process's own; an ordinary user needs a user namespace for that.
    has_network = request["limits"]["network"]
    flags = _CLONE_NEWPID | _CLONE_NEWIPC | (0 if has_network else _CLONE_NEWNET)
    flags |= 0 if os.geteuid() == 0 else _CLONE_NEWUSER
    said = _call_kernel("unshare", flags)
    walls = {"network": "not asked for" if has_network else said, "descendants": said}
    keeper = os.getpid()
    ready, go = os.pipe()
    child = os.fork()
    if child:
        os.close(ready)
        with suppress(
            BrokenPipeError
        ):  # the parent has ended since: the keeper sees that, and removes the folder
            _write(output, {"pid": child})
        os.write(go, b"1")
        _keep(child, request["parent"], request["folder"])
    os.close(go)
    if not os.read(ready, 1):
        raise SystemExit("the keeper is gone")
    os.close(ready)
    if walls["descendants"] == "yes":
        _end_with_parent()
        child = os.fork()
        if child:
            _keep(child, None, None)
        _end_with_parent()
    else:
        die_with_parent(keeper)
    _call_kernel("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return walls


def _call_kernel(function: str, *values: Any) -> str:
    """ "yes", or why the call did not work."""
    try:
        called = getattr(ctypes.CDLL(None, use_errno=True), function)
    except AttributeError:
        return f"this system has no {function}"
    return "yes" if called(*values) >= 0 else os.strerror(ctypes.get_errno())


def _end_with_parent() -> None:
    """Linux ends this process when the one above it ends, however that happens; also no setuid
    programs from here."""
    _call_kernel("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    _call_kernel("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """The same, and end at once when the parent is gone already."""
    _end_with_parent()
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


def _keep(child: int, parent: int | None, folder: str | None) -> NoReturn:
    """Wait for the child, or for the end of the parent; then end what is left and go the way the
    child went."""
    _call_kernel("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake = _wake_on_signals()
    _nothing_onto(0, 1, 2)
    os.closerange(3, wake)
    status = None
    while status is None:
        for pid, ended in _reap():
            status = ended if pid == child else status
        orphaned = parent is not None and os.getppid() != parent
        if orphaned or _asked_to_end:
            _kill(child)
        if status is None:
            select.select([wake], [], [], LOOK_EVERY_S)
            with suppress(BlockingIOError):
                os.read(wake, 4096)
    if parent is not None:
        _end_rest()
    if folder is not None:
        remove_folder(folder)
    _go_the_same_way(status, is_init=parent is None)


def remove_folder(folder: str) -> None:
    """Remove a worker's temporary folder with all that is in it, also what a call has closed to
    everybody."""
    import shutil

    for place, inside, _ in os.walk(folder):
        for name in inside:
            if not os.path.islink(path := os.path.join(place, name)):
                with suppress(OSError):  # somebody else's, or gone: what can be removed will be
                    os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


_asked_to_end = False


def _wake_on_signals() -> int:
    """The end of a pipe that can be read when a child has ended or this process is asked to."""

    def ask(*_: Any) -> None:
        global _asked_to_end
        _asked_to_end = True

    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    top = 200
    os.dup2(reader, top)
    os.dup2(writer, top + 1)
    signal.set_wakeup_fd(top + 1)
    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return top


def _reap() -> list[tuple[int, int]]:
    found = []
    try:
        while (one := os.waitpid(-1, os.WNOHANG))[0]:
            found.append(one)
    except ChildProcessError:
        pass
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _end_rest() -> None:
    """End what the worker has left behind; it has become the keeper's child. What an init leaves
    behind, the kernel ends."""
    deadline = time.monotonic() + END_REST_S
    while time.monotonic() < deadline:
        left = [
            pid
            for file in glob.glob("/proc/self/task/*/children")
            for pid in Path(file).read_text().split()
        ]
        for pid in left:
            _kill(int(pid))
        _reap()
        if not left:
            return
        time.sleep(0.005)


def _go_the_same_way(status: int, is_init: bool) -> NoReturn:
    """End with the status of the child. Nothing inside can end an init by a signal, so that one
    says it as a number."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if is_init:
            os._exit(128 + number)
    else:
        code = os.WEXITSTATUS(status)
        if is_init or code <= 128:
            os._exit(code)
        number = code - 128
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


# --- the walls of the worker ----------------------------------------------------------------------


def _shut_in(request: dict[str, Any], walls: dict[str, str]) -> dict[str, str]:
    """Give up everything that calls do not need; from here on nothing can be had back."""
    limits = request["limits"]
    # When the machine's memory is short, this process is ended, and not one that is needed.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    was_superuser = os.geteuid() == 0
    found = {"user": _drop_privileges(request["folder"], limits["user_files"])}
    _end_with_parent()  # a change of user undoes it
    counts_for_itself = walls["descendants"] == "yes" and not was_superuser
    found.update(_set_limits(limits, _processes_allowed(limits["processes"], counts_for_itself)))
    if os.geteuid() == 0:
        found["processes"] = "the superuser's are not limited"
    is_reachable = walls["network"] not in ("yes", "not asked for")
    said = _landlock(None if limits["user_files"] else request["folder"], network=is_reachable)
    found["writing"] = found["reading"] = "not asked for" if limits["user_files"] else said
    found["sockets"] = "not asked for" if limits["user_files"] else _no_unix_sockets()
    if is_reachable and said == "yes" and _landlock_version() >= 4:
        found["network"] = f"TCP is closed, other ways are not: {walls['network']}"
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
    _call_kernel("prctl", _PR_SET_KEEPCAPS, int(bool(kept)), 0, 0, 0)
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
    """capset(2), version 3: these capabilities, effective and permitted, none inheritable."""
    mask = sum(1 << right for right in rights)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0)
    said = _call_kernel("capset", header, sets)
    if said != "yes" and rights:
        raise OSError(f"capset: {said}")


def _processes_allowed(further: int, counts_for_itself: bool) -> int:
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
    return _tasks_of_user() + further


def _own_threads() -> int:
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1


def _tasks_of_user() -> int:
    count = 0
    mine = os.stat("/proc/self").st_uid if os.path.exists("/proc/self") else -1
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            if os.stat(folder).st_uid == mine:
                count += len(os.listdir(f"{folder}/task"))
        except OSError:
            continue
    return count


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
    if not sys.platform.startswith("linux"):
        return 0
    return max(
        0, ctypes.CDLL(None, use_errno=True).syscall(_SYS_LANDLOCK, None, ctypes.c_size_t(0), 1)
    )


def _landlock(folder: str | None, network: bool) -> str:
    """Change no file outside the folder, read none but the folder's and what Python and the system
    need, open no TCP connection, signal no process outside: from here on, for good.

    An ordinary user can have this too, and in a container that has no namespaces; it needs Linux
    5.13, for all of it 6.12.
    """
    version = _landlock_version()
    if not version:
        return "this system has no Landlock"
    writing = _LANDLOCK_WRITING[min(version, 3) - 1] if folder is not None else 0
    reading = _LANDLOCK_READING if folder is not None else 0
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
        for place, rights in _allowed(folder, writing, reading) if folder else ():
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


def _allowed(folder: str, writing: int, reading: int) -> list[tuple[str, int]]:
    """Places that are there, and the rights over what lies beneath them."""
    readable = {*_READABLE, *_python_folders(), *os.environ.get("LD_LIBRARY_PATH", "").split(":")}
    found = [(place, reading) for place in sorted(readable) if place and os.path.exists(place)]
    return [*found, (folder, writing | reading), (os.devnull, writing & 0x4002)]


def _python_folders() -> set[str]:
    """Where Python, installed packages, and what is loaded already lie; of the rest of its path
    nothing is needed.

    The path of the process that started this one may hold its working directory: a project, with
    its keys and data.
    """
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.__file__)}
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


def _no_unix_sockets() -> str:
    """Open no socket that is reached by a path (a database's, Docker's): a network of one's own
    does not close those.

    seccomp(2) with a filter over the system calls; pairs of sockets inside this process stay
    allowed.
    """
    machine = os.uname().machine
    if not sys.platform.startswith("linux") or machine not in _SYSTEM_CALLS:
        return f"not on {sys.platform} {machine}"
    audit, open_socket, open_ring = _SYSTEM_CALLS[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EACCES
    steps = (
        (load, 0, 0, 4),  # 0: the machine that the call is made for
        (equal, 0, 8, audit),  # another one: 10
        (load, 0, 0, 0),  # 2: the number of the call
        (at_least, 6, 0, 0x40000000),  # a second table of calls, on x86_64: 10
        (equal, 2, 0, open_socket),  # 7
        (equal, 4, 0, open_ring),  # through a ring a socket could be had as well: 10
        (give, 0, 0, allow),
        (load, 0, 0, 16),  # 7: the family of the socket
        (equal, 1, 0, 1),  # AF_UNIX: 10
        (give, 0, 0, allow),
        (give, 0, 0, refuse),  # 10
    )
    packed = b"".join(struct.pack("HBBI", *step) for step in steps)
    code = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    return _call_kernel("prctl", _PR_SET_SECCOMP, 2, ctypes.c_char_p(program), 0, 0)


def _landlock_allow(library: ctypes.CDLL, rules: int, place: str, rights: int) -> None:
    class Beneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("rights", ctypes.c_uint64), ("place", ctypes.c_int32))

    number = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        library.syscall(_SYS_LANDLOCK + 1, rules, 1, ctypes.byref(Beneath(rights, number)), 0)
    finally:
        os.close(number)


if __name__ == "__main__":
    main()
