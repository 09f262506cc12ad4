"""How long a call may take: seconds on the wall, less those in which no core was free for it.

On a busy machine a call that needs one second may take ten, and nothing is wrong with it. Linux
tells of each thread how long it was ready to run and had to wait; such time does not count, up to
`AT_MOST` times the limit on the wall. A call that keeps the cores busy itself, with threads that
wait for one another, gains nothing by that. Where the system does not tell, all seconds count.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from aligner.sandbox.usage import LOOK_EVERY_S, processes_below

AT_MOST = 10
"""How many times its limit a call may take on the wall."""


class Patience:
    """The time that is left of `limit_s` seconds from now on, for the processes below `keeper`;
    without one all seconds count."""

    def __init__(self, limit_s: float, keeper: int | None = None) -> None:
        self._limit_s, self._keeper = limit_s, keeper
        self._began = self._looked = time.monotonic()
        self._excused_s = 0.0
        self._at_first: dict[int, tuple[int, int]] | None = None
        self._at_last: dict[int, tuple[int, int]] = {}

    def left_s(self) -> float:
        """Seconds that are left; 0 or less when the time is over."""
        now = time.monotonic()
        left = self._left_at(now)
        if self._keeper is not None and (left <= 0 or now - self._looked >= LOOK_EVERY_S):
            self._look(self._keeper, now)
            left = self._left_at(now)
        return left

    def _left_at(self, now: float) -> float:
        passed_s = now - self._began
        longest_s = self._limit_s * (1 if self._keeper is None else AT_MOST)
        return min(self._limit_s - passed_s + self._excused_s, longest_s - passed_s)

    def _look(self, keeper: int, now: float) -> None:
        """Excuse what was waited for a core. What passed before the first look counts."""
        self._looked = now
        found = times_of_threads(keeper)
        if self._at_first is None:
            self._at_first = found
        self._at_last.update(found)
        ran_ns = waited_ns = 0
        for thread, (ran, waited) in self._at_last.items():
            ran_before, waited_before = self._at_first.get(thread, (0, 0))
            ran_ns += ran - ran_before
            waited_ns = max(waited_ns, waited - waited_before)
        passed_s = now - self._began
        had_s = max(passed_s - waited_ns / 1e9, min(passed_s, ran_ns / 1e9))
        self._excused_s = passed_s - had_s


def times_of_threads(keeper: int) -> dict[int, tuple[int, int]]:
    """Of each thread below a keeper how long it ran, and how long it waited for a core, in
    nanoseconds; nothing where the system does not tell."""
    found = {}
    for pid in processes_below(keeper):
        tasks = Path(f"/proc/{pid}/task")
        with suppress(OSError, ValueError):  # it has ended, or this is another system
            for thread in os.listdir(tasks):
                ran, waited, *_ = (tasks / thread / "schedstat").read_text().split()
                found[int(thread)] = int(ran), int(waited)
    return found
