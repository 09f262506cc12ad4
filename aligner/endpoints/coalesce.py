"""Identical requests in flight share one: the first is sent, the others wait for its reply.

The shared request runs in a task of its own, so a waiter that is cancelled does not take it from
the others; with the last waiter it is cancelled too. An error reaches every waiter. This stands
around the cache and not inside it: then the reply is in the cache before the request stops being
"in flight", and no identical one can slip through between.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from aligner.endpoints.request import ChatRequest, Completion, LLMClient, Wrapper, request_key


@dataclass
class _Shared:
    task: asyncio.Task[Completion]
    waiters: int = 0


class Coalesce(Wrapper):
    """Sends each of several identical requests in flight once; those who only waited get it marked
    as `cached`."""

    def __init__(self, inner: LLMClient) -> None:
        super().__init__(inner)
        self._in_flight: dict[str, _Shared] = {}

    async def chat(self, request: ChatRequest) -> Completion:
        """Send the request, or join an identical one."""
        key = request_key(request)
        shared = self._in_flight.get(key)
        first = shared is None
        if shared is None:
            shared = self._in_flight[key] = _Shared(asyncio.create_task(self._ask(key, request)))
        shared.waiters += 1
        try:
            completion = await asyncio.shield(shared.task)
        finally:
            shared.waiters -= 1
            if shared.waiters == 0 and not shared.task.done():
                if self._in_flight.get(key) is shared:
                    del self._in_flight[key]  # who comes now must not join what is being cancelled
                shared.task.cancel()
        return completion if first else replace(completion, cached=True)

    async def _ask(self, key: str, request: ChatRequest) -> Completion:
        task = asyncio.current_task()
        try:
            return await self.inner.chat(request)
        finally:
            mine = self._in_flight.get(key)
            if mine is not None and mine.task is task:
                del self._in_flight[key]
