"""What happens in an isolated process stays there: each kind of failure comes back as a sentence,
in bounded time."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from aligner.losses.dsl import sandboxed
from aligner.losses.dsl.sandboxed import JOBS, run_isolated

TABLE = "unit.losses.test_sandboxed:HOSTILE_JOBS"
GIB = 2**30
PROPOSAL = """
def proposed(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    z = self.beta * ((policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps))
    return {body}
"""


# --- jobs that do what no proposal should be able to do; they run in the child --------------------


def loops(payload: dict[str, Any]) -> dict[str, Any]:
    while True:
        pass


def sleeps(payload: dict[str, Any]) -> dict[str, Any]:
    Path("here").touch()
    time.sleep(1000)
    return {}


def allocates(payload: dict[str, Any]) -> dict[str, Any]:
    return {"sum": float(torch.ones(GIB).sum())}


def allocates_in_python(payload: dict[str, Any]) -> dict[str, Any]:
    return {"length": len(bytearray(4 * GIB))}


def forks(payload: dict[str, Any]) -> dict[str, Any]:
    if os.fork() == 0:
        time.sleep(1000)
    return {}


def starts_a_program(payload: dict[str, Any]) -> dict[str, Any]:
    return {"status": subprocess.run(["/bin/true"]).returncode}


def writes_a_large_file(payload: dict[str, Any]) -> dict[str, Any]:
    with open("large", "wb") as file:
        for _ in range(100):
            file.write(bytes(1_000_000))
    return {}


def prints(payload: dict[str, Any]) -> dict[str, Any]:
    print('{"result": {"forged": true}, "error": null}', flush=True)
    os.write(1, b'{"result": {"forged": true}, "error": null}\n' * 1000)
    print("rubbish" * 100_000, file=sys.stderr, flush=True)
    return {"honest": True}


def exits(payload: dict[str, Any]) -> dict[str, Any]:
    print("leaving now")
    sys.exit(7)


def crashes(payload: dict[str, Any]) -> dict[str, Any]:
    ctypes.string_at(0)
    return {}


def raises(payload: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("no such thing " + "x" * 100_000)


def answers_with_nan(payload: dict[str, Any]) -> dict[str, Any]:
    return {"value": float("nan")}


def answers_too_much(payload: dict[str, Any]) -> dict[str, Any]:
    return {"value": "x" * 2_000_000}


def writes_rubbish_to_every_pipe(payload: dict[str, Any]) -> dict[str, Any]:
    for number in range(3, 20):
        try:
            os.write(number, b"rubbish\n")
        except OSError:
            continue
    return {}


def calls_home(payload: dict[str, Any]) -> dict[str, Any]:
    socket.create_connection(("127.0.0.1", payload["port"]), timeout=5)
    return {"connected": True}


def looks_around(payload: dict[str, Any]) -> dict[str, Any]:
    Path("mine").write_text("x")
    environment = {key: value for key, value in os.environ.items() if key != "LC_CTYPE"}
    return {
        "cwd": os.getcwd(),
        "environment": environment,
        "files": os.listdir("."),
        "user": os.geteuid(),
    }


def tries_each(payload: dict[str, Any]) -> dict[str, Any]:
    """What a process survives, one after the other: the class of the error that each met."""
    found = {}
    for job in (allocates_in_python, forks, starts_a_program, writes_a_large_file, calls_home):
        try:
            found[job.__name__] = f"went through: {job(payload)}"
        except Exception as error:
            found[job.__name__] = type(error).__name__
    return found


def prints_and_looks(payload: dict[str, Any]) -> dict[str, Any]:
    return {**prints(payload), **looks_around(payload)}


_HERE = (
    *(loops, sleeps, allocates, exits, crashes, raises, answers_with_nan, answers_too_much),
    *(writes_rubbish_to_every_pipe, tries_each, prints_and_looks),
)
HOSTILE_JOBS = {job.__name__: job for job in _HERE}


# --- what comes back ------------------------------------------------------------------------------

RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "loops": (
        {"cpu_s": 1.0, "timeout_s": 100.0},
        "it used more than 1 s of processor time and was stopped",
    ),
    "sleeps": ({"timeout_s": 1.0}, "it took longer than 1 s and was stopped"),
    "allocates": ({}, "it needed more than 1024 MiB of memory"),
    "exits": ({}, "it ended with status 7 and without an answer; it said last: leaving now"),
    "crashes": ({}, "it was ended by signal SIGSEGV"),
    "raises": ({}, "ValueError: no such thing xxx"),
    "answers_with_nan": ({}, "ValueError: Out of range float values"),
    "answers_too_much": ({}, "it answered with more than 1000000 bytes and was stopped"),
    "writes_rubbish_to_every_pipe": ({}, "its answer cannot be read"),
}


def isolated(
    job: str, payload: dict[str, Any], table: str = TABLE, **limits: Any
) -> dict[str, Any]:
    return run_isolated(
        job,
        payload,
        **{"timeout_s": 60.0, "memory_bytes": GIB, "cpu_s": 60.0, "table": table, **limits},
    )


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """All runs of the table, two at a time: each takes seconds to load torch."""
    with ThreadPoolExecutor(2) as pool:
        yield {job: pool.submit(isolated, job, {}, **limits) for job, (limits, _) in RUNS.items()}


@pytest.mark.parametrize("job", RUNS)
def test_a_job_that_misbehaves_ends_with_a_sentence(
    job: str, answers: dict[str, Future[dict[str, Any]]]
) -> None:
    answer = answers[job].result()
    assert RUNS[job][1] in answer["error"]
    assert answer["result"] is None
    assert len(answer["error"]) <= sandboxed.MAX_ERROR_CHARACTERS


def test_what_a_job_prints_is_not_its_answer_and_its_folder_and_environment_are_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    answer = isolated("prints_and_looks", {})
    assert answer["error"] is None
    found = answer["result"]
    assert found["honest"]
    assert "forged" not in found
    assert found["files"] == ["mine"]
    assert not Path(found["cwd"]).exists()
    assert found["environment"]["HOME"] == found["cwd"]
    assert not set(found["environment"]) - {
        *("HOME", "TMPDIR", "LANG", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "PYTHONHASHSEED"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    }


def test_a_job_gets_no_memory_no_process_no_large_file_and_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = isolated("tries_each", {"port": server.getsockname()[1]})
    found, isolation = answer["result"], answer["isolation"]
    assert found["allocates_in_python"] == "MemoryError"
    assert found["writes_a_large_file"] == "OSError"
    if isolation["processes"] == "yes":
        assert (found["forks"], found["starts_a_program"]) == ("BlockingIOError", "BlockingIOError")
    if isolation["network"] == "yes":
        assert found["calls_home"] == "OSError"


def test_a_process_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    answer = isolated("check", {})
    assert answer["error"].startswith("the process could not be started: ")
    assert answer["isolation"] == {}


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _child_at_work(parent: int) -> int | None:
    """The process id of the parent's child, once its job has written a file to its folder."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            if os.listdir(f"/proc/{child}/cwd"):
                return int(child)
        except OSError:
            continue
    return None


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_no_child_outlives_its_parent(how: signal.Signals) -> None:
    code = (
        "import signal, sys; sys.path[:0] = [sys.argv[1]]\n"
        "signal.signal(signal.SIGINT, "
        "signal.default_int_handler)\n"  # a job in a shell's background would ignore it
        "from aligner.losses.dsl.sandboxed import run_isolated\n"
        f"run_isolated('sleeps', {{}}, timeout_s=600, memory_bytes=2**30, cpu_s=60, "
        f"table={TABLE!r})\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as parent:
        try:
            deadline = time.monotonic() + 300
            while (child := _child_at_work(parent.pid)) is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert child is not None
            parent.send_signal(how)
            _, complaint = parent.communicate(timeout=120)
            deadline = time.monotonic() + 120
            while _is_alive(child) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not _is_alive(child)
            assert ("KeyboardInterrupt" in complaint.decode()) == (how == signal.SIGINT)
        finally:
            parent.kill()


# --- the two jobs ---------------------------------------------------------------------------------


def test_a_proposal_is_checked_in_isolation() -> None:
    text = PROPOSAL.format(body="-F.logsigmoid(z)")
    answer = isolated("check", {"text": text, "beta": 0.05}, sandboxed.TABLE)
    assert answer["error"] is None
    assert answer["result"]["ok"]
    assert answer["result"]["name"] == "proposed"
    assert answer["result"]["facts"]["slope_at_zero"] == pytest.approx(-0.5)
    walls = {
        "network",
        "descendants",
        "user",
        "memory",
        "cpu",
        "files",
        "core",
        "processes",
        "writing",
        "disk",
    }
    walls |= {"reading", "sockets", "memory files", "open files", "total"}
    assert set(answer["isolation"]) == walls


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("eval('1')", "proposal, line 4: calling 'eval' is not allowed"),
        ("torch.exp(-z)", "the loss is inf"),
        ("F.softplus(z)", "average slope over z in +-10 is +0.5"),
        ("z.mean()", "proposal, line 4: the loss has shape ()"),
    ],
)
def test_a_bad_proposal_comes_back_with_its_reason_and_no_error(body: str, reason: str) -> None:
    found = JOBS["check"]({"text": PROPOSAL.format(body=body), "beta": 0.05})
    assert not found["ok"]
    assert reason in found["errors"][0]
    json.dumps(found, allow_nan=False)


def test_several_seeds_of_the_bandit_run_in_one_process() -> None:
    text = PROPOSAL.format(body="-F.logsigmoid(z)")
    payload = {"beta": 0.1, "seeds": [0, 1, 2], "steps": 20}
    answer = isolated("bandit", {**payload, "text": text}, sandboxed.TABLE)
    assert answer["error"] is None
    found = answer["result"]
    gains = [one["reward_gain"] for one in found["seeds"]]
    assert [one["seed"] for one in found["seeds"]] == [0, 1, 2]
    assert found["mean"] == pytest.approx(sum(gains) / 3)
    assert found["standard_error"] == pytest.approx(
        float(torch.tensor(gains).std()) / 3**0.5, rel=1e-4
    )
    catalogue = JOBS["bandit"]({**payload, "objective": "sigmoid"})
    assert gains == pytest.approx([one["reward_gain"] for one in catalogue["seeds"]], rel=1e-4)
