"""When to stop: the budget of a run is spent, or a server refuses everything.

Both are looked at before a request is sent; what is in flight finishes and counts. Calls are
counted when they are sent, so their limit is exact; tokens and money are known afterwards, so
theirs can be passed by what was in flight. Retries of one request are one call. Replies from the
cache are free and come through in any case.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aligner.config.recipe import Budget
from aligner.endpoints.recording import REFUSALS
from aligner.endpoints.request import ChatRequest, Completion, LLMClient, LLMError, Wrapper, name_of
from aligner.errors import EndpointError

FATAL_IN_A_ROW = 3
BUDGET_HINT = "raise it and resume: what was answered is kept and not asked again"


@dataclass
class Spent:
    """What was spent: requests sent, replies received, tokens."""

    calls: int = 0
    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Prices:
    """US dollars for a million tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what so many tokens cost, in US dollars."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Guard(Wrapper):
    """Sends a request on only while the budget lasts and the server is not known to refuse.

    `spent` continues from an earlier start; `on_call` is waited for before each request is sent.
    `is_submitted`: whether a request was sent and counted by an earlier start, and only its reply
    is missing.
    `minutes` count from the making of the guard, by `clock` (seconds).
    """

    def __init__(
        self,
        inner: LLMClient,
        budget: Budget,
        prices: Prices,
        *,
        spent: Spent | None = None,
        on_call: Callable[[], Awaitable[None]] | None = None,
        is_submitted: Callable[[ChatRequest], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        limits = ((name, getattr(budget, name)) for name in ("calls", "tokens", "usd", "minutes"))
        self._limits = [(name, limit) for name, limit in limits if limit is not None]
        self.prices = prices
        self.spent = spent if spent is not None else Spent()
        self._on_call = on_call
        self._is_submitted = is_submitted
        self._clock = clock
        self._opened = clock()
        self._fatal_in_a_row = 0
        self._last_fatal: LLMError | None = None

    async def chat(self, request: ChatRequest) -> Completion:
        """Send, and count.

        Raises: LLMError("budget"), unsent; EndpointError after three fatal errors in a row.
        """
        if self._is_submitted is None or not self._is_submitted(request):
            self.check(request)
            self.spent.calls += 1
            if self._on_call is not None:
                await self._on_call()
        try:
            completion = await self.inner.chat(request)
        except LLMError as error:
            if error.kind == "fatal" and not _may_be_tried(request, error):
                self._fatal_in_a_row += 1
                self._last_fatal = error
            elif error.data_failure:
                self._fatal_in_a_row = 0  # the server took the key and the parameters
            raise
        self._fatal_in_a_row = 0
        self.spent.replies += 1
        self.spent.prompt_tokens += completion.prompt_tokens
        self.spent.completion_tokens += completion.completion_tokens
        return completion

    def check(self, request: ChatRequest) -> None:
        """Raise when this request may not be sent."""
        if self._last_fatal is not None and self._fatal_in_a_row >= FATAL_IN_A_ROW:
            last = self._last_fatal
            raise EndpointError(
                f"stopped after {self._fatal_in_a_row} refusals in a row; the last one: "
                f"{last.message}",
                last.hint,
            )
        reached = self._reached()
        if reached:
            raise LLMError(
                f"the budget is spent ({reached}); {name_of(request)} was not sent",
                BUDGET_HINT,
                kind="budget",
            )

    def _reached(self) -> str:
        """Return which limit is reached, in words, or an empty string."""
        for name, limit in self._limits:
            value = self._used(name)
            if value >= limit:
                return f"{name}: {value:g} of {limit:g}"
        return ""

    def _used(self, name: str) -> float:
        spent = self.spent
        if name == "calls":
            return spent.calls
        if name == "tokens":
            return spent.prompt_tokens + spent.completion_tokens
        if name == "usd":
            return self.prices.usd(spent.prompt_tokens, spent.completion_tokens)
        return (self._clock() - self._opened) / 60.0


def _may_be_tried(request: ChatRequest, error: LLMError) -> bool:
    """Whether a builder may have asked to find out: not every server takes a `response_format`, and
    what it says then differs."""
    return "response_format" in request.extra and error.status in REFUSALS
