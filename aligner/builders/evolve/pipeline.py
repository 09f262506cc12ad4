"""Rows side by side, each on its own way: what is slow about one holds up no other.

A row is a number; `work` carries it through all its calls and returns what came of it as JSON. So
many are under way at a time and no more, and memory holds those alone: what is finished is in the
journal before its place is given to another row. Rows that finish while others are being written
are written together, so that the disk does not set the pace. The order of the result is that of the
numbers, whatever finished first.

A row whose request failed, though that may not be its own fault (a server that was away, a reply
that was none), is put off to the end, and is a failed row only if it fails again; several of them
with no success in between mean that the server is gone. What ends a run (a spent budget, a wrong
key) lets the rows finish that are under way, as far as they get.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aligner.endpoints.request import LLMError
from aligner.errors import EndpointError
from aligner.runs.journal import Journal

Work = Callable[[int], Awaitable[Any]]
"""From a number to what came of its row, as JSON can hold it. Raises: LLMError."""

Failed = Callable[[int, LLMError], Any]
"""What came of a row whose request failed for good, as JSON can hold it."""

GONE = 8
"""Rows in a row whose requests failed, after all retries, before the server counts as gone."""

WRONG_KEY, NO_ACCESS, NOT_FOUND = 401, 403, 404
WRONG_SERVER = (WRONG_KEY, NO_ACCESS, NOT_FOUND)
"""Statuses that every further request would get, too."""


@dataclass
class Rows:
    """Rows that are worked on. `failed` says what is kept of one that failed; `on_row` hears of
    each that is kept.

    `stopped`: what ended the work before all were done, or None. `in_flight` and `peak`: rows under
    way, now and at most.
    """

    journal: Journal
    total: int
    failed: Failed
    on_row: Callable[[int, Any], None] = lambda number, outcome: None
    stopped: EndpointError | None = None
    in_flight: int = 0
    peak: int = 0
    put_off: dict[int, LLMError] = field(default_factory=dict)
    _failures: int = 0
    _waiting: list[tuple[int, Any]] = field(default_factory=list)
    _current: asyncio.Task[None] | None = None
    _next: asyncio.Task[None] | None = None
    _file: threading.Lock = field(default_factory=threading.Lock)

    async def carry_out(self, work: Work, most: int) -> EndpointError | None:
        """Work on all rows that are not done, at most so many at a time; return what ended it
        early.

        Raises: whatever `work` raises that is no failure of a request.
        """
        try:
            missing = (number for number in range(self.total) if number not in self.journal)
            await self._together(missing, work, most)
            if self.stopped is None and self.put_off:
                again = sorted(self.put_off)
                self.put_off, self._failures = {}, 0
                await self._together(again, work, most)
            if self.stopped is None:
                for number, error in sorted(self.put_off.items()):
                    await self._keep(number, self.failed(number, error))
        finally:
            self._write()
        return self.stopped

    async def _together(self, numbers: Iterable[int], work: Work, most: int) -> None:
        line = iter(numbers)
        tasks = [
            asyncio.create_task(self._one_by_one(line, work)) for _ in range(min(most, self.total))
        ]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _one_by_one(self, line: Iterator[int], work: Work) -> None:
        for number in line:
            if self.stopped is not None:
                return
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            try:
                outcome = await work(number)
                self._failures = 0
            except LLMError as error:
                if not self._has_failed(number, error):
                    continue
                outcome = self.failed(number, error)
            except EndpointError as error:
                self._stop(error)
                return
            finally:
                self.in_flight -= 1
            await self._keep(number, outcome)

    def _has_failed(self, number: int, error: LLMError) -> bool:
        """Say whether a row has failed; else it is put off, or everything stops."""
        if error.data_failure:
            self._failures = 0
            return True
        if error.kind == "budget" or error.status in WRONG_SERVER:
            self._stop(error)
            return False
        self.put_off[number] = error
        self._failures += 1
        if self._failures >= GONE:
            what = f"{self._failures} rows one after the other got no usable reply; the last one"
            hint = error.hint or "see whether the server is there, then continue with --resume"
            self._stop(EndpointError(f"{what}: {error.message}", hint))
        return False

    def _stop(self, error: EndpointError) -> None:
        if self.stopped is None:
            self.stopped = error

    async def _keep(self, number: int, outcome: Any) -> None:
        """Wait until a row is on disk, with all that finish while others are being written."""
        self._waiting.append((number, outcome))
        self.on_row(number, outcome)
        if self._next is None:
            self._next = asyncio.create_task(self._write_after(self._current))
        await asyncio.shield(self._next)

    async def _write_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._current, self._next = self._next, None
        await asyncio.to_thread(self._write)

    def _write(self) -> None:
        """Write what waits. Also called at the end, while a thread may still be writing."""
        with self._file:
            some = self._waiting[:]
            if some:
                self.journal.add_all(some)
            del self._waiting[: len(some)]
