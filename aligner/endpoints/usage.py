"""Usage: what was asked, what it cost and what failed, in total and for each purpose.

Calls, tokens and money are of requests that were sent since the client was opened; replies from the
cache, and those shared with an identical request in flight, are counted as `cached` and cost
nothing. Money is known only where the recipe has prices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aligner.endpoints.budget import Prices
from aligner.endpoints.request import ChatRequest, Completion, LLMClient, LLMError, Wrapper
from aligner.errors import EndpointError

REFUSED = "stopped"


@dataclass
class Counts:
    """Counts of one purpose, or of all. `calls`: requests answered by the model; `errors`: by
    kind; `cached_prompt_tokens` and its like: what `cached` ones would have taken."""

    calls: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0
    empty: int = 0
    latency_s: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    cached_prompt_tokens: int = 0
    cached_completion_tokens: int = 0

    def add(self, completion: Completion) -> None:
        """Count a reply."""
        if completion.cached:
            self.cached += 1
            self.cached_prompt_tokens += completion.prompt_tokens
            self.cached_completion_tokens += completion.completion_tokens
            return
        self.calls += 1
        self.retries += completion.attempts - 1
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        self.truncated += completion.truncated
        self.empty += not completion.text.strip()
        self.latency_s += completion.latency_s

    def add_error(self, error: EndpointError) -> None:
        """Count a failure."""
        if isinstance(error, LLMError):
            self.errors[error.kind] += 1
            self.retries += error.attempts - 1
        else:
            self.errors[REFUSED] += 1

    def to_json(self, prices: Prices) -> dict[str, Any]:
        """Return the counts for a manifest; `usd` is None where there are no prices."""
        priced = bool(prices.prompt or prices.completion)
        return {
            "calls": self.calls,
            "cached": self.cached,
            "retries": self.retries,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "usd": round(prices.usd(self.prompt_tokens, self.completion_tokens), 6)
            if priced
            else None,
            "truncated": self.truncated,
            "empty": self.empty,
            "mean_latency_s": round(self.latency_s / self.calls, 3) if self.calls else None,
            "errors": dict(sorted(self.errors.items())),
        }


class Usage(Wrapper):
    """Counts what passes, under `total` and under each request's purpose."""

    def __init__(self, inner: LLMClient, prices: Prices | None = None) -> None:
        super().__init__(inner)
        self.prices = prices if prices is not None else Prices()
        self.total = Counts()
        self.purposes: dict[str, Counts] = {}

    async def chat(self, request: ChatRequest) -> Completion:
        """Pass on, and count what comes back."""
        tallies = (self.total, self.purposes.setdefault(request.purpose, Counts()))
        try:
            completion = await self.inner.chat(request)
        except EndpointError as error:
            for tally in tallies:
                tally.add_error(error)
            raise
        for tally in tallies:
            tally.add(completion)
        return completion

    def to_json(self) -> dict[str, Any]:
        """Return all accounts for a manifest."""
        purposes = {
            name or "other": tally.to_json(self.prices)
            for name, tally in sorted(self.purposes.items())
        }
        return {**self.total.to_json(self.prices), "purposes": purposes}


def added(before: dict[str, Any], now_used: dict[str, Any]) -> dict[str, Any]:
    """Return the accounts of two sessions together: counts are summed, the mean latency is that of
    all calls."""
    calls = (before.get("calls") or 0) + (now_used.get("calls") or 0)
    total: dict[str, Any] = {}
    for key in {**before, **now_used}:
        old, new = before.get(key), now_used.get(key)
        if isinstance(old, dict) or isinstance(new, dict):
            total[key] = added(old or {}, new or {})
        elif old is None or new is None:
            total[key] = new if old is None else old
        elif key == "mean_latency_s":
            total[key] = round((old * before["calls"] + new * now_used["calls"]) / calls, 3)
        else:
            total[key] = old + new
    return total
