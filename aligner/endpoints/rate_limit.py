"""Rate limits: requests in flight, requests a minute and tokens a minute, lowered when the server
says so.

Two token buckets refill evenly and hold one second's worth, so a minute's limit is not spent in one
burst. The tokens of a request are not known before its reply: the prompt's estimate and
`max_tokens` are taken, and what was not used is given back. A 429 halves all three limits (at most
once in five seconds, since requests in flight together fail together); they come back evenly, from
nothing to full in four minutes. Pauses between retries are not made here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from aligner.endpoints.request import (
    ChatRequest,
    Completion,
    LLMClient,
    Wrapper,
    estimated_tokens,
    prompt_text,
)

HALVING_PAUSE_S = 5.0
RECOVERY_S = 240.0
SMALLEST_SHARE = 1 / 32

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[object]]


class Throttle:
    """The share of the limits that is in use now: 1, less after a 429, and slowly back to 1."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._share = 1.0
        self._seen = clock()
        self._halved = float("-inf")

    def slow_down(self) -> None:
        """Halve the share: the server answered 429."""
        share, now = self.share(), self._clock()
        if now - self._halved >= HALVING_PAUSE_S:
            self._share, self._halved = max(share / 2, SMALLEST_SHARE), now

    def share(self) -> float:
        """Return the share now, in (0, 1]."""
        now = self._clock()
        self._share = min(1.0, self._share + (now - self._seen) / RECOVERY_S)
        self._seen = now
        return self._share


class Bucket:
    """So many units a minute. What needs more than the bucket holds waits for a full one, and is
    paid off after."""

    def __init__(
        self, per_minute: float, throttle: Throttle, clock: Clock = time.monotonic
    ) -> None:
        self._per_s = per_minute / 60.0
        self._throttle = throttle
        self._clock = clock
        self._capacity = max(1.0, self._per_s)
        self._level = self._capacity
        self._seen = clock()

    def wait_s(self, amount: float) -> float:
        """Return for how long `amount` is not to be had yet, in seconds; 0: take it now."""
        now = self._clock()
        rate = self._per_s * self._throttle.share()
        self._level = min(self._capacity, self._level + (now - self._seen) * rate)
        self._seen = now
        missing = min(amount, self._capacity) - self._level
        return missing / rate if missing > 1e-9 else 0.0

    def take(self, amount: float) -> None:
        """Take `amount`; a negative one gives back."""
        self._level -= amount


class RateLimit(Wrapper):
    """Holds requests back until a limit allows them, in the order in which they came.

    `check` is asked when a request's turn has come and may refuse it, so that a spent budget does
    not wait for a rate.
    """

    def __init__(
        self,
        inner: LLMClient,
        *,
        max_in_flight: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        throttle: Throttle | None = None,
        check: Callable[[ChatRequest], None] | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        super().__init__(inner)
        self._throttle = throttle if throttle is not None else Throttle(clock)
        self._max_in_flight = max_in_flight
        self._requests = (
            None
            if requests_per_minute is None
            else Bucket(requests_per_minute, self._throttle, clock)
        )
        self._tokens = (
            None if tokens_per_minute is None else Bucket(tokens_per_minute, self._throttle, clock)
        )
        self._check = check
        self._sleep = sleep
        self._in_flight = self._in_line = 0
        self._line = asyncio.Lock()
        self._left = asyncio.Event()

    async def chat(self, request: ChatRequest) -> Completion:
        """Wait for this request's turn, then send it."""
        tokens = 0  # nobody counts them where there is no bucket for them
        if self._tokens is not None:
            tokens = estimated_tokens(prompt_text(request)) + (request.max_tokens or 0)
        if self._in_line or not self._has_room() or self._wait_s(tokens) > 0.0:
            await self._stand_in_line(request, tokens)
        elif self._check is not None:
            self._check(request)
        for bucket, amount in self._amounts(tokens):
            bucket.take(amount)
        self._in_flight += 1
        try:
            completion = await self.inner.chat(request)
        finally:
            self._in_flight -= 1
            self._left.set()
        if self._tokens is not None:
            self._tokens.take(completion.prompt_tokens + completion.completion_tokens - tokens)
        return completion

    async def _stand_in_line(self, request: ChatRequest, tokens: int) -> None:
        """Return when those who came before have gone, and the limits allow it."""
        self._in_line += 1
        try:
            async with self._line:
                if self._check is not None:
                    self._check(request)
                while not self._has_room():
                    self._left.clear()
                    await self._left.wait()
                while (wait_s := self._wait_s(tokens)) > 0.0:
                    await self._sleep(wait_s)
        finally:
            self._in_line -= 1

    def _has_room(self) -> bool:
        return self._in_flight < max(1, int(self._max_in_flight * self._throttle.share()))

    def _amounts(self, tokens: int) -> list[tuple[Bucket, float]]:
        wanted = ((self._requests, 1.0), (self._tokens, float(tokens)))
        return [(bucket, amount) for bucket, amount in wanted if bucket is not None]

    def _wait_s(self, tokens: int) -> float:
        return max((bucket.wait_s(amount) for bucket, amount in self._amounts(tokens)), default=0.0)
