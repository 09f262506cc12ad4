"""Answers from the file of replies what was asked before, and keeps there what was not.

Many requests are written in one commit, since a commit costs as much as all else in a call. Whoever
waits for a write continues when it is on disk: a request is sent after its call is counted there,
and a reply is handed out after it is kept there. What comes within `PAUSE_S` of the last commit
waits for the next; a request by itself is written at once.
"""

from __future__ import annotations

import asyncio

from aligner.endpoints.request import ChatRequest, Completion, LLMClient, Wrapper, request_key
from aligner.endpoints.store import Store
from aligner.errors import AlignerError

PAUSE_S = 0.005


class GroupCommit:
    """Writes to a store for all who wait. Belongs to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._calls = 0
        self._replies: list[tuple[str, str, Completion]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._last = float("-inf")

    async def add_call(self) -> None:
        """Count a request that is about to be sent."""
        self._calls += 1
        await self._written()

    async def add_reply(self, key: str, model: str, completion: Completion) -> None:
        """Keep a reply, and count it."""
        self._replies.append((key, model, completion))
        await self._written()

    def _written(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        if len(self._waiters) == 1:
            loop.call_at(self._last + PAUSE_S, self.commit)
        return waiter

    def commit(self) -> None:
        """Write what has come until now. An error goes to those who wait for it."""
        waiters, self._waiters = self._waiters, []
        calls, self._calls = self._calls, 0
        replies, self._replies = self._replies, []
        failure: AlignerError | None = None
        try:
            if waiters:
                self._store.write(calls, replies)
                self._last = waiters[0].get_loop().time()
        except AlignerError as error:
            failure = error
        for waiter in waiters:
            if waiter.done():  # who waited was cancelled
                continue
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(failure)


class Cache(Wrapper):
    """Answers from the store what was answered before, and stores what was not."""

    def __init__(
        self, inner: LLMClient, store: Store, group: GroupCommit, identity: str = ""
    ) -> None:
        super().__init__(inner)
        self._store = store
        self._group = group
        self._identity = identity

    async def chat(self, request: ChatRequest) -> Completion:
        """Answer from the store, or ask and store."""
        key = request_key(request, self._identity)
        known = self._store.get(key)
        if known is not None:
            return known
        completion = await self.inner.chat(request)
        await self._group.add_reply(key, request.model, completion)
        return completion

    async def aclose(self) -> None:
        """Close the inner one, then the file."""
        try:
            await super().aclose()
        finally:
            self._group.commit()
            self._store.close()
