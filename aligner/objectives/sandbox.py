"""Running work on a proposed objective in a process of its own: the second of four layers of safety.

`run_isolated` starts a fresh interpreter on this file, with an almost empty environment and a temporary working folder,
and hands it a job's name and a payload as JSON. The child leaves the network (a network namespace of its own, where the
system allows it), loads torch and runs a small backward pass, and then takes its limits on itself: memory, processor
time, size of files, no further processes, no core dumps, no privileges. Only then does it look at the payload. The
clock starts at that moment too, so that a busy machine's slow start costs no proposal its time. Nothing that a job
does reaches the parent but one line of JSON of bounded size; all failures come back as a sentence.

What it is not: a defence against a hole in the kernel or in torch. What keeps proposals from running Python at all is
`source.py` with `interpreter.py`; this is the wall behind that wall. Which parts of the isolation could be had on this
machine is in the answer, under `isolation`.

This file is run as a script by its path, so its top imports the standard library alone: torch comes in only after the
child has left the network.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

Job = Callable[[dict[str, Any]], dict[str, Any]]

START_TIMEOUT_S = 180.0
END_TIMEOUT_S = 20.0
CHECK_LIMITS: dict[str, Any] = {"timeout_s": 60.0, "memory_bytes": 2 * 2**30, "cpu_s": 60.0}
MAX_ANSWER_BYTES = 1_000_000
MAX_FILE_BYTES = 1_000_000
MAX_ERROR_CHARACTERS = 2_000
TABLE = "aligner.objectives.sandbox:JOBS"

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38
_CAP_DAC_READ_SEARCH = 2
_NOBODY = 65534


def check(text: str, where: str, beta: float) -> tuple[str, dict[str, Any]]:
    """Try an objective here; return what is wrong with it ("" for nothing) and facts about its shape."""
    found = run_isolated("check", {"text": text, "where": where, "beta": beta}, **CHECK_LIMITS)
    if found["error"]:
        return found["error"], {}
    return "; ".join(found["result"]["errors"]), found["result"]["facts"]


def run_isolated(
    job: str,
    payload: dict[str, Any],
    *,
    timeout_s: float,
    memory_bytes: int,
    cpu_s: float,
    threads: int = 1,
    table: str = TABLE,
) -> dict[str, Any]:
    """Runs `JOBS[job](payload)` in a process of its own.

    `timeout_s` (wall clock), `cpu_s` and `memory_bytes` (of address space) count from the moment when torch is loaded.
    `table` names another table of jobs as "module:name"; it is for tests and never comes from a payload.

    Returns `result` (what the job gave, or None), `error` (None, or a sentence: the job failed, ran too long, took too
    much, died or answered rubbish), `isolation` (part -> "yes" or why not; empty if the child never got that far) and
    `wall_s` with the start. Raises nothing for what a job does; an interrupt (Ctrl-C) kills the child and goes on up.
    """
    started = time.monotonic()
    request = {
        "job": job,
        "payload": payload,
        "table": table,
        "parent": os.getpid(),
        "path": [str(Path(entry).resolve()) for entry in sys.path if entry],
        "limits": {"memory_bytes": memory_bytes, "cpu_s": cpu_s, "threads": threads},
    }
    text = json.dumps(request).encode()
    with tempfile.TemporaryDirectory(prefix="aligner-", ignore_cleanup_errors=True) as folder:
        try:
            ending = _run_child(text, folder, threads, timeout_s)
        except OSError as error:
            ending = _Ending(failure=f"the process could not be started: {error}")
    answer = _read(ending, timeout_s, cpu_s)
    return {**answer, "wall_s": round(time.monotonic() - started, 3)}


# --- the parent's side -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Ending:
    """What is left of a child: its output, the end of its error stream, its exit status, or why it was stopped."""

    output: bytes = b""
    complaints: bytes = b""
    status: int | None = None
    failure: str = ""


def _run_child(text: bytes, folder: str, threads: int, timeout_s: float) -> _Ending:
    with tempfile.TemporaryFile() as request:
        request.write(text)
        request.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(Path(__file__).resolve())],
            stdin=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=_environment(folder, threads),
            start_new_session=True,
        )
        try:
            return _follow(process, timeout_s)
        finally:
            _kill_group(process)


def _environment(folder: str, threads: int) -> dict[str, str]:
    """Nothing of the parent's but where shared libraries are found; no accelerator is visible."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "CUDA_VISIBLE_DEVICES": "", **counts, **libraries}


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the child and all that it started, and takes its exit status if nobody has."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _follow(process: subprocess.Popen[bytes], timeout_s: float) -> _Ending:
    """Reads until the answer's line is whole, the child is gone, its time is up or it says too much."""
    assert process.stdout is not None
    assert process.stderr is not None
    ending = _Ending()
    deadline, running = time.monotonic() + START_TIMEOUT_S, False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                waited = f"took longer than {timeout_s:g} s" if running else f"did not start in {START_TIMEOUT_S:g} s"
                ending.failure = f"it {waited} and was stopped"
                return ending
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, 65536)
                if key.fileobj is process.stderr:
                    ending.complaints = (ending.complaints + chunk)[-MAX_ERROR_CHARACTERS:]
                    if not chunk:
                        selector.unregister(process.stderr)
                    continue
                ending.output += chunk
                if len(ending.output) > MAX_ANSWER_BYTES:
                    ending.failure = f"it answered with more than {MAX_ANSWER_BYTES} bytes and was stopped"
                    return ending
                lines = ending.output.count(b"\n")
                if lines and not running:
                    deadline, running = time.monotonic() + timeout_s, True
                if lines >= 2:
                    return ending
                if not chunk:
                    return _take_status(process, ending)


def _take_status(process: subprocess.Popen[bytes], ending: _Ending) -> _Ending:
    """After the end of the output: the exit status, and the last of what stood in the error stream."""
    assert process.stderr is not None
    try:
        ending.status = _status_without_reaping(process)
    except subprocess.TimeoutExpired:
        ending.failure = "it closed its output and went on without an answer"
    os.set_blocking(process.stderr.fileno(), False)
    while chunk := process.stderr.read(65536):
        ending.complaints = (ending.complaints + chunk)[-MAX_ERROR_CHARACTERS:]
    return ending


def _status_without_reaping(process: subprocess.Popen[bytes]) -> int:
    """The exit status, once the whole group is killed: the group's number is the child's until it is waited for."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < deadline:
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is not None:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()
        time.sleep(0.01)
    raise subprocess.TimeoutExpired(process.args, END_TIMEOUT_S)


def _read(ending: _Ending, timeout_s: float, cpu_s: float) -> dict[str, Any]:
    """The answer in what the child wrote, or the sentence that says why there is none."""
    first, _, rest = ending.output.partition(b"\n")
    second, newline, _ = rest.partition(b"\n")
    isolation: dict[str, str] = {}
    try:
        isolation = json.loads(first)["isolation"] if first else {}
        if newline and not ending.failure:
            answer = json.loads(second)
            return {"result": answer["result"], "error": answer["error"], "isolation": isolation}
    except (ValueError, TypeError, KeyError):
        ending.failure = ending.failure or "its answer cannot be read"
    return {"result": None, "error": ending.failure or _why_it_died(ending, cpu_s), "isolation": isolation}


def _why_it_died(ending: _Ending, cpu_s: float) -> str:
    status = ending.status if ending.status is not None else 0
    if -status == signal.SIGXCPU:
        return f"it used more than {cpu_s:g} s of processor time and was stopped"
    said = ending.complaints.decode(errors="replace").strip()
    last = f"; it said last: {said[-400:]}" if said else ""
    if status < 0:
        return f"it was ended by signal {signal.Signals(-status).name}{last}"
    return f"it ended with status {status} and without an answer{last}"


# --- the child's side --------------------------------------------------------------------------------------------------


def _child() -> None:
    """Reads the request, shuts itself in, runs the job, writes two lines: that it is ready, and the answer."""
    request = json.load(sys.stdin)
    output = _private_output()
    isolation = {"network": _leave_network()}
    die_with_parent(request["parent"])
    sys.path += [entry for entry in request["path"] if entry not in sys.path]
    limits = request["limits"]
    _load_torch(limits["threads"])
    module, _, name = request["table"].partition(":")
    jobs: dict[str, Job] = getattr(importlib.import_module(module), name)
    isolation["user"] = _drop_privileges()
    die_with_parent(request["parent"])  # a change of user undoes it
    isolation.update(_set_limits(limits["memory_bytes"], limits["cpu_s"]))
    _write(output, {"isolation": isolation})
    _write(output, _answer(jobs, request["job"], request["payload"], limits["memory_bytes"]))


def _private_output() -> IO[bytes]:
    """The pipe to the parent, under a number of its own; what a job prints goes to the error stream instead."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    return output


def _write(output: IO[bytes], answer: dict[str, Any]) -> None:
    output.write(json.dumps(answer, allow_nan=False).encode() + b"\n")
    output.flush()


def _leave_network() -> str:
    """Into a network namespace without interfaces; an ordinary user needs a user namespace for that."""
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except AttributeError:
        return "this system has no namespaces"
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    return "yes" if unshare(flags) == 0 else os.strerror(ctypes.get_errno())


def die_with_parent(parent: int) -> None:
    """Linux ends this process when the parent's thread ends, however that happens; also no setuid programs from here."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except AttributeError:
        return
    prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


def _load_torch(threads: int) -> None:
    """Loads what jobs need and starts the threads that torch wants, before there may be no more of either."""
    import torch

    torch.set_num_threads(threads)
    for module in ("interpreter", "behaviour", "bandit"):
        importlib.import_module(f"aligner.objectives.{module}")
    torch.nn.functional.logsigmoid(torch.zeros(100_000, requires_grad=True)).sum().backward()


def _drop_privileges() -> str:
    """A superuser becomes nobody, whom limits on processes hold.

    Where Python or torch lie in a folder that is closed to others (below /root, say), nobody keeps one capability of the
    superuser's, that of reading: modules that are loaded late would fail otherwise.
    """
    if os.geteuid() != 0:
        return "yes"
    import torch

    files = [Path(file).resolve() for file in (os.__file__, torch.__file__, __file__)]
    is_open = all(parent.stat().st_mode & 0o001 for file in files for parent in file.parents)
    os.chown(".", _NOBODY, _NOBODY)
    if not is_open:
        ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)
    if is_open:
        return "yes"
    _keep_reading_alone()
    return "nobody, but with the right to read all files: the folder of Python is closed to others"


def _keep_reading_alone() -> None:
    """capset(2), version 3: one capability, effective and permitted, none inheritable."""
    reading = 1 << _CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(reading, reading, 0, 0, 0, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def _set_limits(memory_bytes: int, cpu_s: float) -> dict[str, str]:
    """Limits on top of what loading torch has taken."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_limit_s = math.ceil(usage.ru_utime + usage.ru_stime + cpu_s)
    wanted = {
        "memory": (resource.RLIMIT_AS, _address_space_bytes() + memory_bytes, _address_space_bytes() + memory_bytes),
        "cpu": (resource.RLIMIT_CPU, cpu_limit_s, cpu_limit_s + 1),
        "files": (resource.RLIMIT_FSIZE, MAX_FILE_BYTES, MAX_FILE_BYTES),
        "core": (resource.RLIMIT_CORE, 0, 0),
        "processes": (resource.RLIMIT_NPROC, 0, 0),
    }
    found = {}
    for part, (limit, soft, hard) in wanted.items():
        try:
            resource.setrlimit(limit, (soft, hard))
            found[part] = "yes"
        except (ValueError, OSError) as error:
            found[part] = str(error)
    if os.geteuid() == 0:
        found["processes"] = "the superuser's are not limited"
    return found


def _address_space_bytes() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0


def _answer(jobs: dict[str, Job], job: str, payload: dict[str, Any], memory_bytes: int) -> dict[str, Any]:
    """What the job gives, or its error as text: this is the boundary."""
    if job not in jobs:
        return {"result": None, "error": f"there is no job {job!r}"}
    too_much = f"it needed more than {memory_bytes / 2**20:.0f} MiB of memory"
    try:
        result = jobs[job](payload)
        json.dumps(result, allow_nan=False)
    except MemoryError:
        return {"result": None, "error": too_much}
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]
        return {"result": None, "error": too_much if "can't allocate memory" in text else text}
    return {"result": result, "error": None}


# --- the jobs ----------------------------------------------------------------------------------------------------------


def _check(payload: dict[str, Any]) -> dict[str, Any]:
    """{text, beta, where?} -> {ok, errors, facts, name, hash, inputs}: reads the proposal and looks at its behaviour."""
    from aligner.objective_source import SourceError, parse_objective
    from aligner.objectives.behaviour import check_behaviour
    from aligner.objectives.interpreter import as_objective

    try:
        source = parse_objective(payload["text"], payload.get("where", "proposal"))
    except SourceError as error:
        return {"ok": False, "errors": [str(error)], "facts": {}, "name": None, "hash": None, "inputs": []}
    found = check_behaviour(as_objective(source), payload["beta"])
    about = {"name": source.name, "hash": source.hash, "inputs": list(source.inputs)}
    return {"ok": found.ok, "errors": found.errors, "facts": found.facts, **about}


def _bandit(payload: dict[str, Any]) -> dict[str, Any]:
    """{text or objective, seeds, beta?, tau?, label_smoothing?, steps?, lr?, world?} -> results by seed, mean, error.

    `text` is a proposal, `objective` a name of the catalogue; `world` is "search" or "held_out". Gives `seeds` (a list of
    `BanditResult`s with their seed), and `mean` and `standard_error` of the reward gain (None for a single seed).
    """
    from aligner.objective_source import parse_objective
    from aligner.objectives import OBJECTIVES, Settings
    from aligner.objectives.bandit import WORLDS, run_bandit
    from aligner.objectives.interpreter import as_objective

    if "objective" in payload:
        objective = OBJECTIVES[payload["objective"]]
    else:
        objective = as_objective(parse_objective(payload["text"], payload.get("where", "proposal")))
    settings = Settings(**{key: payload[key] for key in ("beta", "tau", "label_smoothing") if key in payload})
    options = {key: payload[key] for key in ("steps", "lr") if key in payload}
    world = WORLDS[payload.get("world", "search")]
    results = [
        {"seed": seed, **asdict(run_bandit(objective, settings, seed=seed, world=world, **options))}
        for seed in payload["seeds"]
    ]
    gains = [result["reward_gain"] for result in results]
    mean = sum(gains) / len(gains)
    spread = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)) if len(gains) > 1 else None
    error = None if spread is None else spread / math.sqrt(len(gains))
    return {"seeds": results, "mean": mean, "standard_error": error}


JOBS: dict[str, Job] = {"check": _check, "bandit": _bandit}
"""What can be run in isolation: a name and its function, from a JSON object to a JSON object."""


if __name__ == "__main__":
    _child()
