"""Requests through a server's batch API: as files, at half the price and within a day.

Who asks notices nothing but the time: `chat` collects requests until no new one has come for a
moment, since then all who ask are waiting. They are written to a file and submitted; the server is
asked how far it is, with growing pauses; and every request gets its result. What comes meanwhile
goes into the next file, so several batches may be under way.

A folder remembers every batch before it is submitted, so a run that was killed continues with the
same batches, and nothing is submitted twice; replies that nobody has asked for yet wait there. A
request whose batch expired, was cancelled, or answered it with a passing trouble is sent once more
in another batch. A server that has no room for
so many tokens gets the rest when a batch has ended, and smaller files where one by itself is too
large.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.endpoints.batch_folder import REQUESTS, Batch, BatchFolder
from aligner.endpoints.batch_lines import (
    CHAT,
    CONTINUE,
    completion_from,
    is_final,
    is_reply,
    request_line,
)
from aligner.endpoints.batch_server import BatchServer
from aligner.endpoints.openai_backend import body_of
from aligner.endpoints.request import Backend, ChatRequest, Completion, LLMClient, LLMError
from aligner.errors import AlignerError

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # of one file
ENDED = ("completed", "failed", "expired", "cancelled")
NO_ROOM = "token_limit_exceeded"
PRICE = 0.5  # of what the same request costs by itself
PATIENCE = 20  # looks at a batch in a row that fail, before it is given up
SLOWER = 1.5

Result = dict[str, Any] | None
Waiter = asyncio.Future[tuple[int, Result]]


@dataclass(frozen=True)
class Batching:
    """How requests are sent in batches.

    `folder` remembers them, and belongs to one client. After `quiet_s` without a new request those
    that came are submitted. The server is asked after `first_pause_s`, and then ever less often, up
    to `longest_pause_s`. `on_progress` gets how many requests are done, and how many were
    submitted.
    """

    folder: Path
    quiet_s: float = 1.0
    first_pause_s: float = 10.0
    longest_pause_s: float = 300.0
    on_progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class _Queued:
    line: str
    endpoint: str
    model: str
    attempt: int = 1


class BatchBackend(Backend):
    """Answers from batches. `direct` answers what is urgent; `on_submit` is called with how many
    requests are about to be submitted for the first time."""

    def __init__(
        self,
        server: BatchServer,
        direct: LLMClient,
        batching: Batching,
        *,
        on_submit: Callable[[int], None] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Raises: UsageError or DataError when the folder cannot be used."""
        self._server = server
        self._direct = direct
        self._batching = batching
        self._on_submit = on_submit
        self._sleep = sleep
        self._folder = BatchFolder(batching.folder)
        self._queue: dict[str, _Queued] = {}
        self._waiters: dict[str, list[Waiter]] = {}
        self._batch_of: dict[str, Batch] = {}
        self._ready: dict[str, tuple[Batch, int]] = {}
        self._following: dict[int, asyncio.Task[None]] = {}
        self._progress: dict[int, tuple[int, int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._most = MOST_REQUESTS
        self._is_full = False
        for batch in self._folder.batches.values():
            self._remember(batch)

    def _remember(self, batch: Batch) -> None:
        """Know the requests of a batch of an earlier start."""
        if batch.status != "ended":
            self._batch_of |= dict.fromkeys(self._folder.requests(batch), batch)
            return
        for start, result in self._folder.results(batch):
            if is_reply(result):
                self._ready[result["custom_id"]] = (batch, start)

    def capabilities(self) -> frozenset[str]:
        """What the server can do at once, it can do in a batch."""
        return self._direct.capabilities()

    def is_submitted(self, request: ChatRequest) -> bool:
        """Say whether a request is in a batch already, and so has been counted."""
        return request.key in self._batch_of or request.key in self._ready

    async def chat(self, request: ChatRequest) -> Completion:
        """Answer one request, in a batch. Raises: LLMError."""
        if request.urgent:
            if self._on_submit is not None:
                self._on_submit(1)
            return await self._direct.chat(request)
        began, key = time.monotonic(), request.key
        if key in self._ready:
            batch, start = self._ready.pop(key)
            attempts = batch.attempt
            result: Result = self._folder.result(batch, start)
        else:
            attempts, result = await self._result(key, request)
        return completion_from(
            result,
            request,
            self._server.base_url,
            self._server.secret,
            attempts=attempts,
            latency_s=time.monotonic() - began,
        )

    async def _result(self, key: str, request: ChatRequest) -> tuple[int, Result]:
        """Wait for what comes of a request, and how often it was sent."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        batch = self._batch_of.get(key)
        if batch is None and key not in self._queue:
            endpoint = CHAT if request.prompt is None else CONTINUE
            line = request_line(key, endpoint, body_of(request))
            self._queue[key] = _Queued(line, endpoint, request.model)
        self._waiters.setdefault(key, []).append(waiter)
        if batch is not None:
            self._follow(batch)
        else:
            self._submit_soon()
        try:
            return await waiter
        finally:
            self._leave(key, waiter)

    def _leave(self, key: str, waiter: Waiter) -> None:
        """Forget who has its result, or was cancelled; with the last one what is only queued."""
        waiters = self._waiters.get(key, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiters.pop(key, None)
            self._queue.pop(key, None)

    def _submit_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._batching.quiet_s, self._submit)

    def _submit(self) -> None:
        """Write what is queued into files, and submit them."""
        self._timer = None
        if self._is_full:
            return  # the end of a batch makes room
        queue, self._queue = self._queue, {}
        for endpoint, attempt, keys in _files(queue, self._most):
            try:
                lines = [queue[key].line for key in keys]
                batch = self._folder.prepare(endpoint, attempt, lines)
                if self._on_submit is not None and attempt == 1:
                    self._on_submit(len(keys))
                self._folder.save(batch)
            except AlignerError as error:
                self._fail(keys, error)
                continue
            self._batch_of |= dict.fromkeys(keys, batch)
            self._follow(batch)

    def _follow(self, batch: Batch) -> None:
        """See to it that somebody waits for the end of a batch."""
        if batch.number in self._following:
            return
        task = asyncio.create_task(self._carry_out(batch))
        self._following[batch.number] = task
        task.add_done_callback(lambda done: self._followed(batch, done))

    def _followed(self, batch: Batch, task: asyncio.Task[None]) -> None:
        del self._following[batch.number]
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            keys = [key for key, its in self._batch_of.items() if its is batch]
            if isinstance(error, LLMError) and error.kind == "fatal" and not batch.batch_id:
                self._folder.forget(batch)  # the server said no; else it may have made the batch
                self._let_go(keys)
            self._fail(keys, error)
        if self._is_full and (batch.status == "ended" or not self._following):
            self._is_full = False
            self._submit()

    async def _carry_out(self, batch: Batch) -> None:
        """Bring a batch to its end, from where it stands, and hand its results out."""
        if batch.status == "prepared":
            path = self._folder.file_of(batch, REQUESTS)
            batch.input_file_id = await self._server.upload(path.name, path.read_bytes())
            batch.status = "uploaded"
            self._folder.save(batch)
            state = await self._server.submit(batch.input_file_id, batch.endpoint)
        elif batch.status == "uploaded":
            state = await self._server.find(batch.input_file_id)
            if state is None:
                state = await self._server.submit(batch.input_file_id, batch.endpoint)
        else:
            state = await self._server.look(batch.batch_id)
        batch.batch_id, batch.status = str(state.id), "submitted"
        self._folder.save(batch)
        state = await self._end_of(batch, state)
        results = await self._server.results(state)
        if state.status == "failed" and not results:
            self._refused(batch, state)
            return
        self._folder.end(batch, results)
        self._hand_out(batch, {result["custom_id"]: result for result in results})

    async def _end_of(self, batch: Batch, state: Any) -> Any:
        """Look at a batch until it has ended."""
        pause_s, failures = self._batching.first_pause_s, 0
        while True:
            self._tell(batch, state)
            if state.status in ENDED:
                return state
            await self._sleep(pause_s)
            pause_s = min(SLOWER * pause_s, self._batching.longest_pause_s)
            try:
                state, failures = await self._server.look(batch.batch_id), 0
            except LLMError as error:
                failures += 1
                if not error.retryable or failures == PATIENCE:
                    raise

    def _tell(self, batch: Batch, state: Any) -> None:
        counts = state.request_counts
        done = 0 if counts is None else counts.completed + counts.failed
        self._progress[batch.number] = (done, batch.size)
        if self._batching.on_progress is not None:
            all_done, sizes = map(sum, zip(*self._progress.values(), strict=True))
            self._batching.on_progress(all_done, sizes)

    def _hand_out(self, batch: Batch, results: dict[str, dict[str, Any]]) -> None:
        """Give the results to those who wait, and queue what is worth a second attempt."""
        requests = self._folder.requests(batch)
        self._let_go(requests)
        for key, line in requests.items():
            result = results.get(key)
            final = result is not None and is_final(result)
            waiters = self._waiters.get(key, [])
            if not final and batch.attempt == 1 and waiters:
                self._requeue(key, line, batch, attempt=2)
                continue
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result((batch.attempt, result))
        for start, result in self._folder.results(batch):
            if result["custom_id"] not in self._waiters and is_reply(result):
                self._ready[result["custom_id"]] = (batch, start)

    def _refused(self, batch: Batch, state: Any) -> None:
        """A batch that the server did not begin. Raises: LLMError, unless there was no room."""
        errors = (state.errors.data if state.errors is not None else None) or []
        requests = self._folder.requests(batch)
        self._folder.forget(batch)
        self._let_go(requests)
        if any(error.code == NO_ROOM for error in errors):
            alone = len(self._following) == 1
            if not alone or len(requests) > 1:
                self._most = max(1, len(requests) // 2) if alone else self._most
                self._is_full = not alone
                for key, line in requests.items():
                    if key in self._waiters:
                        self._requeue(key, line, batch, attempt=batch.attempt)
                return
        words = "; ".join(
            f"{error.message or error.code}" + (f" (line {error.line})" if error.line else "")
            for error in errors[:3]
        )
        server = self._server
        said = server.secret.strike(f"{server.base_url} refused a batch: {words or 'no reason'}")
        self._fail(
            list(requests),
            LLMError(said, "see what it says of the model, the key and the requests", kind="fatal"),
        )

    def _requeue(self, key: str, line: str, batch: Batch, *, attempt: int) -> None:
        model = json.loads(line)["body"]["model"]
        self._queue[key] = _Queued(line, batch.endpoint, model, attempt)
        if not self._is_full:
            self._submit_soon()

    def _let_go(self, keys: Any) -> None:
        for key in keys:
            self._batch_of.pop(key, None)

    def _fail(self, keys: Sequence[str], error: BaseException) -> None:
        for key in keys:
            for waiter in self._waiters.get(key, []):
                if not waiter.done():
                    waiter.set_exception(error)

    async def aclose(self) -> None:
        """Stop waiting, and close the connections. The server continues, and the folder knows."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._following.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.aclose()
        await self._direct.aclose()


def _files(queue: dict[str, _Queued], most: int) -> Iterator[tuple[str, int, list[str]]]:
    """Divide what is queued into files, (endpoint, attempt, keys): one model each, and no larger
    than the server takes."""
    groups: dict[tuple[str, int, str], list[str]] = {}
    for key, asked in queue.items():
        groups.setdefault((asked.endpoint, asked.attempt, asked.model), []).append(key)
    for (endpoint, attempt, _), keys in groups.items():
        part: list[str] = []
        size = 0
        for key in keys:
            length = len(queue[key].line)  # ASCII: as many bytes
            if part and (len(part) == most or size + length > MOST_BYTES):
                yield endpoint, attempt, part
                part, size = [], 0
            part.append(key)
            size += length
        yield endpoint, attempt, part
