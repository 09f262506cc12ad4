"""Call a function in a process of its own that can be stopped: time, memory, processes, disk and
network are limited.

A `Worker` opens one function in a fresh interpreter ("module:function" or
"/path/to/file.py:function", called once with the setup) and calls what that returns with one JSON
value after the other. A call that takes too long, needs too much, starts too many processes, fills
its folder or dies costs its worker and nothing else: the outcome says in a sentence what happened,
and the next call starts a new one. Nothing that a call does reaches this process but one line of
JSON of bounded size.

What it is not: a defence against a hole in the kernel. Which walls this machine could build is in
`Worker.isolation`, and how they are built in `child.py`. No process, and no folder, outlives its
worker, also when this process is killed. Imports no torch, and does not load any in the worker.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aligner.sandbox import child
from aligner.sandbox.patience import Patience
from aligner.sandbox.usage import LOOK_EVERY_S, Limits, Usage

START_TIMEOUT_S = 180.0
END_TIMEOUT_S = 20.0
ENDING_S = 5.0
"""How long a process that has closed its output has at least, until it counts as one that did not
end."""
MAX_ANSWER_BYTES = 1_000_000
MAX_ERROR_CHARACTERS = child.MAX_ERROR_CHARACTERS
WITHOUT: list[str] = []
"""Walls that are left out as if this machine had none (`unshare`, `landlock`, `seccomp`): for
tests."""


class StartError(Exception):
    """A worker could not be started, or the function in it could not be opened; the text says
    why."""


@dataclass(slots=True)
class WorkerResult:
    """What became of a call: `result`, or `error` (it raised, as text), or `stopped` (which limit
    it met, how it died)."""

    result: Any = None
    error: str = ""
    stopped: str = ""


def bare_environment(folder: str, threads: int) -> dict[str, str]:
    """Nothing of this process's but where shared libraries are found; no accelerator is visible."""
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    found = {
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONHASHSEED": "0",
    }
    return {**found, **thread_counts(threads), **libraries}


def thread_counts(threads: int) -> dict[str, str]:
    """The variables that keep numerical libraries from starting a thread for each core."""
    return dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
    )


class Worker:
    """One function in a process of its own, started by the first call and again after a call that
    was stopped.

    `environment` and `folder` (the working directory) are the child's; without them it gets a bare
    environment, in which numerical libraries use `threads` threads, and a temporary folder. Without
    `site`, it starts faster and has packages from the folders on this process's path alone, not
    through the hooks of editable installs. Calls from several threads take turns. A copy of this
    object in a forked process starts a worker of its own. `closed` names files that are not read
    even where they lie among packages. `isolation` says of the worker at hand
    which walls stand: part -> "yes" or why not.
    """

    def __init__(
        self,
        factory: str,
        setup: Any,
        limits: Limits,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        site: bool = True,
        threads: int = 1,
        closed: Sequence[str] = (),
    ) -> None:
        self.isolation: dict[str, str] = {}
        self._factory, self._setup, self._limits = factory, setup, limits
        self._start = _Start(environment, folder, site, threads)
        self._closed = list(closed)
        self._turn = threading.Lock()
        self._child: _Child | None = None
        self._is_interrupted = False

    def start(self) -> None:
        """Start it now, if it is not running; StartError says why it cannot be."""
        with self._turn:
            self._running()

    def call(self, payload: Any, timeout_s: float) -> WorkerResult:
        """Call the function with a JSON value. Raises StartError, and nothing for what the function
        does."""
        with self._turn:
            child = self._running()
            if self._is_interrupted:
                self._end()
                return WorkerResult(stopped="it was interrupted")
            try:
                outcome, is_clean = child.call(payload, timeout_s)
            except BaseException:
                self._end()
                raise
            if not is_clean:
                self._end()
            return outcome

    def interrupt(self) -> None:
        """From another thread: end the call that is running or that begins; its outcome says that
        it was stopped, or it raises StartError."""
        self._is_interrupted = True  # before the look at a child that may be made just now
        child = self._child
        if child is not None:
            child.process.terminate()

    def close(self) -> None:
        """End the worker and all that it has started; a later call starts a new one."""
        self._end()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> _Child:
        child = self._child
        if child is not None and (child.owner != os.getpid() or child.process.poll() is not None):
            self._end()
            child = None
        if child is None:
            self.isolation = {}
            child = _Child(self._request(), self._start, self._limits)
            self._child = child
            try:
                self.isolation = child.open()
            except BaseException as error:
                self.isolation = child.isolation
                self._end()
                if isinstance(error, OSError):
                    raise StartError(f"the process could not be started: {error}") from error
                raise
        return child

    def _request(self) -> dict[str, Any]:
        return {
            "factory": self._factory,
            "setup": self._setup,
            "parent": os.getpid(),
            "path": [str(Path(entry or ".").resolve()) for entry in sys.path],
            "limits": asdict(self._limits),
            "closed": self._closed,
            "without": WITHOUT,
        }

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


@dataclass(frozen=True, slots=True)
class _Start:
    """How the interpreter is started."""

    environment: Mapping[str, str] | None
    folder: Path | None
    site: bool
    threads: int


@dataclass(slots=True)
class _Handles:
    """What must be cleared away when a child ends, however this process comes to that point."""

    owner: int
    folder: str
    process: subprocess.Popen[bytes] | None = None
    pidfd: int | None = None

    def clear(self) -> None:
        """End all processes of the child, and remove its folder. In a copy of the owning process,
        leave them alone."""
        if self.owner != os.getpid():
            return
        if self.pidfd is not None:
            with suppress(OSError):  # gone already
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.close(self.pidfd)
            self.pidfd = None
        if self.process is not None:
            _end_keeper(self.process)
        if os.path.lexists(self.folder):  # the keeper was killed
            child.remove_folder(self.folder)


def _end_keeper(process: subprocess.Popen[bytes]) -> None:
    """Ask the keeper to end, so that it ends what the worker has left behind; then see to it."""
    process.terminate()
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        with suppress(OSError):  # what could not be written any more
            stream.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT_S)
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(slots=True)
class _Said:
    """What a child has said and nobody has taken yet, and the end of its error stream."""

    output: bytearray = field(default_factory=bytearray)
    complaints: bytes = b""
    has_ended: bool = False


class _Child:
    """A started process with its pipes: this side of the protocol."""

    def __init__(self, request: dict[str, Any], start: _Start, limits: Limits) -> None:
        self.owner = os.getpid()
        self.isolation: dict[str, str] = {}
        self._limits = limits
        folder = os.path.join(tempfile.gettempdir(), f"aligner-{secrets.token_hex(8)}")
        self._handles = _Handles(self.owner, folder)
        self._finalizer = weakref.finalize(self, self._handles.clear)
        self._said = _Said()
        self._selector = selectors.DefaultSelector()
        self._waiting = b""
        self._usage: Usage | None = None
        self._request = {**request, "folder": folder, "is_home": start.folder is None}
        try:
            self.process = self._popen(start)
        except OSError as error:
            self._finalizer()
            raise StartError(f"the process could not be started: {error}") from error

    def _popen(self, start: _Start) -> subprocess.Popen[bytes]:
        name = self._handles.folder
        given = start.environment
        flags = ["-B", "-s" if given is None else "-I", *([] if start.site else ["-S"])]
        process = subprocess.Popen(
            [sys.executable, *flags, str(Path(child.__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=start.folder,
            env=bare_environment(name, start.threads)
            if given is None
            else {**given, "TMPDIR": name},
            start_new_session=True,
        )
        self._handles.process = process
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, "output")  # type: ignore[arg-type]
        self._selector.register(process.stderr, selectors.EVENT_READ, "complaints")  # type: ignore[arg-type]
        return process

    def open(self) -> dict[str, str]:
        """Wait until the function is open; the walls that stand."""
        patience = Patience(START_TIMEOUT_S)
        late = f"it did not start in {START_TIMEOUT_S:g} s and was stopped"
        line, said = self._exchange(self._request, patience, late)
        pid = _opened(line, said)["pid"]
        if hasattr(os, "pidfd_open"):
            with suppress(ProcessLookupError):  # it has ended already; reading on will tell
                self._handles.pidfd = os.pidfd_open(pid)
        answer = _opened(*self._exchange(None, patience, late))
        self._usage = Usage(self.process.pid, self._handles.folder, self._limits)
        self.isolation = {**answer["isolation"], **self._usage.watched}
        return self.isolation

    def call(self, payload: Any, timeout_s: float) -> tuple[WorkerResult, bool]:
        """What became of the call, and whether the worker can continue."""
        number = secrets.token_hex(8)
        self._said.complaints = b""
        late = f"it took longer than {timeout_s:g} s and was stopped"
        patience = Patience(timeout_s, self.process.pid)
        line, said = self._exchange({"id": number, "payload": payload}, patience, late)
        if line is None:
            return WorkerResult(stopped=said), False
        answer = _read_answer(line, number)
        if answer is None or self._said.output or self._waiting:
            return WorkerResult(stopped="its answer cannot be read"), False
        outcome = WorkerResult(
            answer.get("result"), answer.get("error", ""), answer.get("stopped", "")
        )
        return outcome, not outcome.stopped and not answer["dirty"]

    def end(self) -> None:
        """End its processes, close its pipes, remove its folder."""
        self._selector.close()
        self._finalizer()

    def _exchange(self, message: Any, patience: Patience, late: str) -> tuple[bytes | None, str]:
        """Send a message, if any, and wait for a line; or for the sentence that says why there is
        none."""
        if message is not None:
            self._waiting = json.dumps(message).encode() + b"\n"
            self._send()
        while True:
            line, newline, rest = self._said.output.partition(b"\n")
            if newline:
                self._said.output = rest
                return bytes(line), ""
            if len(line) > MAX_ANSWER_BYTES:
                return None, f"it answered with more than {MAX_ANSWER_BYTES} bytes and was stopped"
            if self._said.has_ended:
                return None, self._why_it_ended(min(END_TIMEOUT_S, patience.left_s()))
            if (left := patience.left_s()) <= 0:
                return None, late
            if self._usage is not None and (wrong := self._usage.look()):
                return None, wrong
            self._listen(left if self._usage is None else min(left, LOOK_EVERY_S))

    def _listen(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            if key.data == "input":
                self._selector.unregister(key.fileobj)
                self._send()
                continue
            chunk = os.read(key.fd, 65536)
            if not chunk:
                self._selector.unregister(key.fileobj)
            if key.data == "output":
                self._said.output += chunk
                self._said.has_ended = not chunk
            else:
                self._said.complaints = (self._said.complaints + chunk)[-MAX_ERROR_CHARACTERS:]

    def _send(self) -> None:
        """Write as much as the pipe takes; the rest when there is room."""
        stream = self.process.stdin
        assert stream is not None
        try:
            self._waiting = self._waiting[os.write(stream.fileno(), self._waiting) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._waiting = b""  # it has closed its input, or is gone: reading will tell
        if self._waiting:
            self._selector.register(stream, selectors.EVENT_WRITE, "input")

    def _why_it_ended(self, wait_s: float) -> str:
        """After the end of the output: how the process ended, and the last of what stood in its
        error stream."""
        try:
            status = self.process.wait(max(ENDING_S, wait_s))
        except subprocess.TimeoutExpired:
            return "it closed its output and went on without an answer"
        self._read_last_complaints()
        if -status == signal.SIGXCPU and self._limits.cpu_s is not None:
            return f"it used more than {self._limits.cpu_s:g} s of processor time and was stopped"
        text = " ".join(self._said.complaints.decode(errors="replace").split())
        last = f"; it said last: {text[-200:]}" if text else ""
        if status < 0:
            return f"it was ended by signal {_signal_name(-status)}{last}"
        return f"it ended with status {status} and without an answer{last}"

    def _read_last_complaints(self) -> None:
        assert self.process.stderr is not None
        try:
            while chunk := os.read(self.process.stderr.fileno(), 65536):
                self._said.complaints = (self._said.complaints + chunk)[-MAX_ERROR_CHARACTERS:]
        except BlockingIOError:
            return


def _opened(line: bytes | None, said: str) -> dict[str, Any]:
    """What a child says while it starts; a StartError where it says why it cannot, or nothing
    (`said` tells why)."""
    if line is None:
        raise StartError(said)
    answer: dict[str, Any] = json.loads(line)
    if "failure" in answer:
        raise StartError(answer["failure"])
    return answer


def _read_answer(line: bytes, number: str) -> dict[str, Any] | None:
    """The answer to the call of that number, or None where the line is something else."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_one = (
        isinstance(answer, dict)
        and answer.get("id") == number
        and isinstance(answer.get("dirty"), bool)
    )
    return (
        answer
        if is_one and sum(key in answer for key in ("result", "error", "stopped")) == 1
        else None
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
