"""What a run has asked for so far, and what it cost: of each client and for each purpose, over all
sessions, and in a line for the screen.

    usage.json    client -> its accounts, as `aligner.endpoints.usage` has them

Written every few seconds and at the end, so a kill loses some seconds of the accounts by purpose;
what budgets go by stands in the file of replies, and loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aligner.builders.evolve.roles import Roles
from aligner.endpoints.usage import added
from aligner.events import OnEvent, StageProgress, tell
from aligner.runs.run import Run

USAGE = "usage.json"
WRITE_EVERY_S = 5.0
TICK_S = 1.0


@dataclass(frozen=True)
class Total:
    """What all clients together have done since the run was first started. `usd` is None where no
    client has prices."""

    calls: int
    tokens: int
    usd: float | None


@dataclass
class Accounts:
    """The accounts of a run. `expected`: US dollars that all of it will cost, at least and at
    most."""

    run: Run
    roles: Roles
    expected: tuple[float, float] | None = None
    clock: Callable[[], float] = time.monotonic
    _before: dict[str, Any] = field(init=False)
    _written: float = field(init=False)
    _opened: float = field(init=False)

    def __post_init__(self) -> None:
        self._before = self.run.read_json(USAGE) or {}
        self._written = self._opened = self.clock()

    def to_json(self) -> dict[str, Any]:
        """Return the accounts of each client, those of earlier sessions with them."""
        now = {name: client.usage.to_json() for name, client in self.roles.clients().items()}
        return {
            **self._before,
            **{name: added(self._before.get(name, {}), used) for name, used in now.items()},
        }

    def write(self) -> None:
        """Write them down."""
        self.run.write_json(USAGE, self.to_json())
        self._written = self.clock()

    def write_now_and_then(self) -> None:
        """Write them down if that was some seconds ago."""
        if self.clock() - self._written >= WRITE_EVERY_S:
            self.write()

    def total(self) -> Total:
        """Return what was spent by all clients."""
        calls = tokens = 0
        usd, is_priced = 0.0, False
        for client in self.roles.clients().values():
            spent, prices = client.spent, client.usage.prices
            calls += spent.calls
            tokens += spent.prompt_tokens + spent.completion_tokens
            usd += prices.usd(spent.prompt_tokens, spent.completion_tokens)
            is_priced = is_priced or bool(prices.prompt or prices.completion)
        return Total(calls, tokens, usd if is_priced else None)

    def replies(self) -> int:
        """Return how many requests were answered in this session, from the cache too."""
        tallies = [client.usage.total for client in self.roles.clients().values()]
        return sum(tally.calls + tally.cached for tally in tallies)

    def say(self, name: str, most: int, on_event: OnEvent | None) -> None:
        """Tell how many requests of a stage were answered, of at most so many."""
        tell(on_event, StageProgress(name, min(most, self.replies()), most, self.line()))
        self.write_now_and_then()

    def line(self) -> str:
        """Return how fast it goes in this session, and what it cost in all, in a few words."""
        tallies = [client.usage.total for client in self.roles.clients().values()]
        calls, cached = sum(t.calls for t in tallies), sum(t.cached for t in tallies)
        tokens = sum(t.prompt_tokens + t.completion_tokens for t in tallies)
        seconds = max(self.clock() - self._opened, 1e-3)
        said = [f"{calls / seconds:.3g} requests/s", f"{tokens / seconds:,.0f} tokens/s"]
        if cached:
            said.append(f"{cached / (calls + cached):.0%} from the cache")
        if batched := self.roles.batched.values():
            done, submitted = sum(one for one, _ in batched), sum(all_ for _, all_ in batched)
            said.append(f"{done:,} of {submitted:,} requests in batches answered")
        total = self.total()
        if total.usd is not None:
            said.append(f"${total.usd:,.2f}")
            if self.expected is not None:
                low, high = self.expected
                said[-1] += f" of an estimated ${low:,.2f} to ${high:,.2f}"
        return ", ".join(said)


@dataclass
class Progress:
    """How far the rows are, for the screen: told with every row, and while there is none."""

    name: str
    total: int
    accounts: Accounts
    on_event: OnEvent | None
    in_flight: Callable[[], int] = int
    done: int = 0
    kept: int = 0
    said: tuple[Any, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, outcome: Any) -> None:
        """Count a row, and tell of it."""
        self.count(outcome)
        self.say()

    def count(self, outcome: Any) -> None:
        """Count a row."""
        self.done += 1
        self.kept += len(outcome["made"])
        self.dropped.update(drop["reason"] for drop in outcome["dropped"])

    def tick(self) -> None:
        """Tell how far it is, if something has come since."""
        if self.said != self._now():
            self.say()

    def _now(self) -> tuple[Any, ...]:
        return self.done, self.accounts.replies(), dict(self.accounts.roles.batched)

    def say(self) -> None:
        """Tell how far it is."""
        self.said = self._now()
        failed = sum(self.dropped.values())
        said = [f"{self.kept:,} kept, {failed:,} dropped"]
        if failed:
            worst, count = self.dropped.most_common(1)[0]
            said[0] += f" ({count / (failed + self.kept):.0%} {worst})"
        said += [f"{self.in_flight()} in flight", self.accounts.line()]
        tell(self.on_event, StageProgress(self.name, self.done, self.total, "; ".join(said)))
        self.accounts.write_now_and_then()


@asynccontextmanager
async def ticking(say: Callable[[], None]) -> AsyncIterator[None]:
    """Say something every second meanwhile."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK_S)
            say()

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
