"""What it gives that each row of `aligner evolve` goes its own way: against evolving all rows first
and answering them then, with two models of unequal speed; and what many rows do to memory.

    python -m benchmarks.speed.evolve [--write]

The models are in this process and only wait, so that nothing but the order of the work differs;
client, file of replies and journal are the real ones. With `--write` the lines go into
`benchmarks/RESULTS.md`. Takes a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aligner.builders.evolve.pipeline import Rows
from aligner.builders.evolve.recipe import EvolveRecipe
from aligner.builders.evolve.roles import Roles, open_roles
from aligner.config.recipe import Endpoint
from aligner.endpoints.request import Backend, ChatRequest, Completion
from aligner.runs.journal import Journal
from benchmarks.results import write

ROWS, LIMIT = 600, 8
EVOLVES_S, ANSWERS_S = 0.04, 0.06
MANY = 20_000
GOAL = 1.5


class Waiting(Backend):
    """A model that takes a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def chat(self, request: ChatRequest) -> Completion:
        """Answer after a pause."""
        await asyncio.sleep(self.seconds)
        return Completion(f"{request.messages[-1]['content']} more")


def recipe() -> EvolveRecipe:
    """Two models, each with its own limit."""
    answerer = {"model": "slow", "max_in_flight": LIMIT}
    return EvolveRecipe(
        output_dir="unused",
        endpoint=Endpoint(model="fast", max_in_flight=LIMIT),
        evolve={"answerer": answerer},
    )


async def ask(client: Any, text: str, purpose: str) -> str:
    request = ChatRequest(messages=({"role": "user", "content": text},), purpose=purpose)
    return str((await client.chat(request)).text)


async def timed(
    folder: Path, total: int, work: Callable[[Roles, int], Awaitable[Any]], pause: float = 1.0
) -> tuple[float, float]:
    """Return the seconds until the first row is kept, and until all are."""

    def backend(section: Endpoint) -> Waiting:
        return Waiting(pause * (EVOLVES_S if section.model == "fast" else ANSWERS_S))

    first: list[float] = []
    start = time.perf_counter()
    async with open_roles(recipe(), folder / "replies.sqlite", backend) as roles:
        journal = Journal(folder / "rows.jsonl", "key")
        rows = Rows(journal, total, lambda number, error: None)

        async def one(number: int) -> Any:
            made = await work(roles, number)
            first.append(time.perf_counter() - start)
            return made

        await rows.carry_out(one, roles.max_in_flight)
    return first[0], time.perf_counter() - start


async def row(roles: Roles, number: int) -> str:
    """Evolve, then answer."""
    evolved = await ask(roles.evolver, f"instruction {number}", "evolve")
    return await ask(roles.answerer, evolved, "answer")


async def only_evolve(roles: Roles, number: int) -> str:
    return await ask(roles.evolver, f"instruction {number}", "evolve")


async def only_answer(roles: Roles, number: int) -> str:
    return await ask(roles.answerer, f"instruction {number} more", "answer")


def measure() -> str:
    """Measure everything, as Markdown."""
    with tempfile.TemporaryDirectory() as name:
        places = [Path(name) / part for part in ("rows", "evolve", "answer", "many")]
        for place in places:
            place.mkdir()
        first, pipelined = asyncio.run(timed(places[0], ROWS, row))
        _, evolving = asyncio.run(timed(places[1], ROWS, only_evolve))
        first_answer, answering = asyncio.run(timed(places[2], ROWS, only_answer))
        staged, gain = evolving + answering, (evolving + answering) / pipelined
        before = _memory_mb()
        _, many = asyncio.run(timed(places[3], MANY, row, pause=0.0))
        grown = _memory_mb() - before
    return (
        f"{ROWS} rows, a model that evolves in {EVOLVES_S * 1000:.0f} ms and one that answers in "
        f"{ANSWERS_S * 1000:.0f} ms, {LIMIT} requests at a time each: {pipelined:.2f} s row by "
        f"row, {staged:.2f} s stage by stage, {gain:.2f} times (goal: {GOAL}; without any cost of "
        f"ours {1 + EVOLVES_S / ANSWERS_S:.2f}). The first row is finished after {first:.2f} s "
        f"instead of {evolving + first_answer:.2f} s. {MANY:,} rows with models that take no "
        f"time: {MANY / many:,.0f} rows a second, and {grown:.0f} MB more memory at the most."
    )


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help="write the lines into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    text = measure()
    print(text)
    if options.write:
        write("evolve-rows", text)


if __name__ == "__main__":
    main()
