"""Rows side by side: their order, their number, what is on disk when, and how the work ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aligner.builders.evolve.pipeline import GONE, Rows
from aligner.endpoints.request import Kind, LLMError
from aligner.errors import EndpointError
from aligner.runs.journal import Journal

Work = Callable[[int], Awaitable[Any]]


def carried_out(folder: Path, work: Work, total: int, most: int = 4) -> Rows:
    """Rows that were worked on, with a journal in the folder."""

    async def go() -> Rows:
        journal = Journal(folder / "rows.jsonl", "key")
        rows = Rows(journal, total, lambda number, error: f"failed: {error.kind}")
        await rows.carry_out(work, most)
        return rows

    return asyncio.run(go())


def kept(folder: Path) -> dict[int, Any]:
    """What is in the journal on disk."""
    journal = Journal(folder / "rows.jsonl", "key")
    return {number: journal[number] for number in range(1000) if number in journal}


def failing(kind: Kind, status: int | None = None, times: int = 10**9) -> Work:
    """Work whose row 3 fails so many times."""
    failed = 0

    async def work(number: int) -> int:
        nonlocal failed
        if number == 3 and failed < times:
            failed += 1
            raise LLMError("no", kind=kind, status=status)
        return number * 10

    return work


@pytest.mark.parametrize("most", [1, 7, 64])
def test_what_comes_out_does_not_depend_on_what_is_ready_first(tmp_path: Path, most: int) -> None:
    waits = random.Random(most)

    async def work(number: int) -> int:
        for _ in range(waits.randrange(1, 30)):
            await asyncio.sleep(0)
        return number * 10

    rows = carried_out(tmp_path, work, 50, most)
    assert kept(tmp_path) == {number: number * 10 for number in range(50)}
    assert rows.peak == min(most, 50)


def test_a_row_is_on_disk_while_others_are_still_under_way(tmp_path: Path) -> None:
    """The slow row is let go only once the fast one is found on disk."""

    async def work(number: int) -> int:
        if number == 0:
            while not kept(tmp_path):
                await asyncio.sleep(0.001)
        return number

    carried_out(tmp_path, work, 3, most=2)
    assert sorted(kept(tmp_path)) == [0, 1, 2]


def test_rows_that_are_there_are_not_worked_on_again(tmp_path: Path) -> None:
    worked: list[int] = []

    async def work(number: int) -> int:
        worked.append(number)
        return number

    carried_out(tmp_path, work, 4)
    carried_out(tmp_path, work, 6)
    assert worked == [0, 1, 2, 3, 4, 5]


def test_rows_that_finish_together_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is asked once for a group, and not once for a row."""
    sizes: list[int] = []
    add_all = Journal.add_all
    monkeypatch.setattr(
        Journal, "add_all", lambda self, rows: sizes.append(len(rows)) or add_all(self, rows)
    )

    full = [asyncio.Event() for _ in range(10)]

    async def work(number: int) -> int:
        if number % 64 == 63:
            full[number // 64].set()
        await full[number // 64].wait()
        return number

    carried_out(tmp_path, work, 640, most=64)
    assert sum(sizes) == 640
    assert len(sizes) <= 20


def test_memory_holds_the_rows_under_way_and_no_others(tmp_path: Path) -> None:
    """20,000 rows of 2 kB would be 40 MB."""
    import tracemalloc

    async def work(number: int) -> str:
        await asyncio.sleep(0)
        return str(number).zfill(2000)

    tracemalloc.start()
    rows = carried_out(tmp_path, work, 20_000, most=512)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.journal[19_999] == "19999".zfill(2000)
    assert peak < 16e6


@pytest.mark.parametrize("kind", ["content_filter", "context_length"])
def test_a_row_that_cannot_be_answered_has_failed_and_the_others_have_not(
    tmp_path: Path, kind: Kind
) -> None:
    rows = carried_out(tmp_path, failing(kind), 6)
    assert rows.stopped is None
    assert kept(tmp_path) == {0: 0, 1: 10, 2: 20, 3: f"failed: {kind}", 4: 40, 5: 50}


@pytest.mark.parametrize(
    ("kind", "status"), [("unavailable", 500), ("bad_reply", None), ("fatal", 400)]
)
def test_a_row_that_failed_is_tried_again_at_the_end(
    tmp_path: Path, kind: Kind, status: int | None
) -> None:
    carried_out(tmp_path, failing(kind, status, times=1), 6)
    assert kept(tmp_path) == {number: number * 10 for number in range(6)}


@pytest.mark.parametrize(
    ("kind", "status"), [("unavailable", 500), ("bad_reply", None), ("fatal", 400)]
)
def test_a_row_that_fails_at_the_end_too_is_counted(
    tmp_path: Path, kind: Kind, status: int | None
) -> None:
    rows = carried_out(tmp_path, failing(kind, status), 6)
    assert rows.stopped is None
    assert kept(tmp_path)[3] == f"failed: {kind}"
    assert len(kept(tmp_path)) == 6


@pytest.mark.parametrize(
    ("kind", "status"), [("budget", None), ("fatal", 401), ("fatal", 403), ("fatal", 404)]
)
def test_what_every_request_would_meet_stops_at_once_and_is_no_failed_row(
    tmp_path: Path, kind: Kind, status: int | None
) -> None:
    rows = carried_out(tmp_path, failing(kind, status), 1000, most=2)
    assert isinstance(rows.stopped, LLMError)
    assert rows.stopped.kind == kind
    assert 3 not in kept(tmp_path)
    assert {0, 1, 2} <= set(kept(tmp_path))
    assert max(kept(tmp_path)) <= 5


def test_a_server_that_is_gone_stops_everything_and_fails_no_row(tmp_path: Path) -> None:
    asked: list[int] = []

    async def work(number: int) -> int:
        asked.append(number)
        if number >= 20:
            raise LLMError("cannot be reached", kind="unavailable")
        return number

    rows = carried_out(tmp_path, work, 1000)
    assert isinstance(rows.stopped, EndpointError)
    assert f"{GONE} rows" in rows.stopped.message
    assert "--resume" in rows.stopped.hint
    assert sorted(kept(tmp_path)) == list(range(20))
    assert len(asked) < 40


def test_rows_that_are_under_way_when_the_budget_is_spent_are_finished(tmp_path: Path) -> None:
    let_go = asyncio.Event()

    async def work(number: int) -> int:
        if number == 2:
            let_go.set()
            raise LLMError("the budget is spent", kind="budget")
        await let_go.wait()
        return number

    carried_out(tmp_path, work, 100, most=3)
    assert kept(tmp_path) == {0: 0, 1: 1}


def test_an_error_that_is_no_failed_request_ends_everything_and_what_is_done_is_kept(
    tmp_path: Path,
) -> None:
    ended: list[int] = []

    async def work(number: int) -> int:
        if number == 5:
            raise KeyError("a mistake in a function of the user's")
        try:
            await asyncio.sleep(60 if number == 4 else 0)
        finally:
            ended.append(number)
        return number

    with pytest.raises(KeyError):
        carried_out(tmp_path, work, 100, most=2)
    assert kept(tmp_path) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert 4 in ended, "what was under way is not left behind"
