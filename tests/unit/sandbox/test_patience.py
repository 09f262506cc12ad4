"""The time that a call has: a busy machine takes none of it, and a call that does nothing, or keeps
the machine busy itself, gains none."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aligner.sandbox import patience, worker
from aligner.sandbox.patience import AT_MOST, Patience, times_of_threads
from aligner.sandbox.worker import Limits, Worker

JOB = """
import time
def open_job(setup):
    def job(seconds):
        time.sleep(seconds)
        return "done"
    return job
"""
SECOND = 10**9
Times = dict[int, tuple[int, int]]


class Clock:
    """The clock on the wall, and what threads have run and waited until then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: Callable[[float], Times]) -> None:
        self.now = 100.0
        monkeypatch.setattr(patience.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(patience, "times_of_threads", lambda keeper: times(self.now - 100.0))

    def left_of(self, limit_s: float, after_s: float) -> float:
        """What is left when somebody has looked again and again."""
        self.now = 100.0
        one = Patience(limit_s, keeper=1)
        while self.now < 100.0 + after_s - 1e-9:
            self.now += 0.125
            left = one.left_s()
        return left


def thread(ran: float, waited: float) -> tuple[int, int]:
    return int(ran * SECOND), int(waited * SECOND)


@pytest.mark.parametrize(
    ("times", "left"),
    [
        (lambda s: {1: thread(0.1 * s, 0.9 * s)}, 8.9),  # one of ten on a core
        (lambda s: {1: thread(s, 0)}, 0.0),
        (lambda s: {1: thread(0, 0)}, 0.0),  # it sleeps
        (lambda s: {n: thread(s / 4, 3 * s / 4) for n in range(8)}, 0.0),  # eight on two cores
        (lambda s: {1: thread(0, 0), 7: thread(s / 10, 9 * s / 10)}, 8.9),
        (lambda s: {}, 0.0),
    ],
    ids=["one of ten", "alone", "asleep", "eight on two", "one of two", "not told"],
)
def test_what_was_waited_for_a_core_does_not_count(
    monkeypatch: pytest.MonkeyPatch, times: Callable[[float], Times], left: float
) -> None:
    """Of ten seconds; what passed before the first look, an eighth of a second here, counts."""
    assert Clock(monkeypatch, times).left_of(10.0, 10.0) == pytest.approx(left, abs=0.03)


def test_what_has_waited_before_and_ended_meanwhile_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def times(passed: float) -> Times:
        waits = {1: thread(5, 70 + min(passed, 4.0))}
        return waits if passed < 4.0 else {2: thread(0, 0)}

    assert Clock(monkeypatch, times).left_of(5.0, 5.0) == pytest.approx(3.9, abs=0.15)


def test_no_call_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lambda passed: {1: thread(0, passed)})
    assert clock.left_of(1.0, AT_MOST - 0.2) > 0
    assert clock.left_of(1.0, AT_MOST + 0.01) <= 0


def test_without_processes_the_clock_on_the_wall_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lambda passed: pytest.fail("nobody is there to be looked at"))
    one = Patience(3.0)
    clock.now += 2.0
    assert one.left_s() == pytest.approx(1.0)


@pytest.fixture
def job(tmp_path: Path) -> str:
    (tmp_path / "job.py").write_text(JOB)
    return f"{tmp_path}/job.py:open_job"


def test_a_call_that_gets_no_core_is_not_stopped(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()

    def starved(keeper: int) -> Times:
        return {1: (0, int((time.monotonic() - begun) * SECOND))}

    monkeypatch.setattr(patience, "times_of_threads", starved)
    with Worker(job, None, Limits(memory_bytes=2**28), site=False) as one:
        assert one.call(1.0, 0.4).result == "done"
    monkeypatch.setattr(patience, "times_of_threads", lambda keeper: {})
    with Worker(job, None, Limits(memory_bytes=2**28), site=False) as one:
        assert one.call(60.0, 0.4).stopped == "it took longer than 0.4 s and was stopped"


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not tell")
def test_the_system_tells_of_the_threads_of_a_worker(job: str) -> None:
    with Worker(job, None, Limits(memory_bytes=2**28), site=False) as one:
        one.start()
        assert one._child is not None
        found = times_of_threads(one._child.process.pid)
    assert any(ran > 0 for ran, _ in found.values())


def test_an_interrupt_reaches_a_worker_that_is_about_to_start(
    job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from another thread, which may find no process yet that it could end."""
    one = Worker(job, None, Limits(memory_bytes=2**28), site=False)
    request = Worker._request

    def interrupted(self: Worker) -> dict[str, Any]:
        self.interrupt()
        return request(self)

    monkeypatch.setattr(worker.Worker, "_request", interrupted)
    with one:
        assert one.call(0.0, 30.0).stopped == "it was interrupted"
