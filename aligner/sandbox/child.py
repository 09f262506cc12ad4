"""The process behind `aligner.sandbox.worker`: confine this process, then answer calls one by one.

This file is run as a script by its path, in a fresh interpreter, so it and its siblings import the
standard library alone. Its first line of input says which function to open
("module:function" or "/path/to/file.py:function"), with what, and within which limits. What that
function returns is called with the payload of every further line, and its result is written back.

    keeper   the process that was started: it stays outside, and when the worker or the parent is
             gone it ends what is left and removes the worker's folder
    init     in a process namespace of its own, where the system allows one: when it ends, the
             kernel ends all in it
    worker   opens the function, then gives up what it has (network, user, memory, processes,
             files: `walls.py`), then takes calls

Which walls could be built on this machine is in the second line of output, part -> "yes" or why
not. None of them is a defence against a hole in the kernel.
"""

from __future__ import annotations

import errno
import glob
import importlib
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn

if __name__ == "__main__":  # by its path: the project need not be on Python's path
    for _name, _level in (("aligner", 1), ("aligner.sandbox", 0)):
        sys.modules[_name] = ModuleType(_name)
        sys.modules[_name].__path__ = [str(Path(__file__).resolve().parents[_level])]

from aligner.sandbox import kernel, walls
from aligner.sandbox.kernel import call_kernel

if __name__ == "__main__":  # what is opened next may import the whole of it
    for _name in [_name for _name in sys.modules if _name.partition(".")[0] == "aligner"]:
        del sys.modules[_name]

Job = Callable[[Any], Any]

MAX_ERROR_CHARACTERS = 2_000
LOOK_EVERY_S = 1.0
END_REST_S = 5.0

_PR_SET_CHILD_SUBREAPER = 36
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
    kernel.ABSENT.update(request["without"])
    standing = _become_worker(request, output)
    try:
        job = _load(request["factory"])(request["setup"])
    except Exception as error:  # what is opened may be a user's code
        _write(output, {"failure": describe(error)})
        return
    limits, closed = request["limits"], request["closed"]
    standing.update(walls.shut_in(request["folder"], limits, standing, closed))
    _write(output, {"isolation": standing})
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
    flags = kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | (0 if has_network else kernel.CLONE_NEWNET)
    user, group = os.geteuid(), os.getegid()
    flags |= 0 if user == 0 else kernel.CLONE_NEWUSER
    said = call_kernel("unshare", flags)
    if said == "yes" and user != 0:
        _keep_names(user, group)
    standing = {"network": "not asked for" if has_network else said, "descendants": said}
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
    if standing["descendants"] == "yes":
        walls.end_with_parent()
        child = os.fork()
        if child:
            _keep(child, None, None)
        walls.end_with_parent()
    else:
        die_with_parent(keeper)
    call_kernel("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return standing


def _keep_names(user: int, group: int) -> None:
    """User and group are called in a user namespace what they are called outside; without names
    no file could be made on what is mounted there."""
    with suppress(OSError):  # nothing is mounted then
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def die_with_parent(parent: int) -> None:
    """End when the parent ends, and at once when it is gone already."""
    walls.end_with_parent()
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


def _keep(child: int, parent: int | None, folder: str | None) -> NoReturn:
    """Wait for the child, or for the end of the parent; then end what is left and go the way the
    child went."""
    call_kernel("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
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


if __name__ == "__main__":
    main()
