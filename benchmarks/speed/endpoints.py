"""What a request to a language model costs: CPU time of the client, throughput, and what many in
flight do to its memory and latency.

    python -m benchmarks.speed.endpoints [--write]

A server on this machine, in a process of its own, answers every request after a pause. Compared
with the `openai` package by itself, as it is used by default. `cache`: with the file of replies and
the accounts of a run, as builders use the client. Each line is measured in a process of its own;
throughput and latency are the best of three tries, since other work on this machine takes from
them. With `--write` the table goes into `benchmarks/RESULTS.md`. Takes five minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from benchmarks.results import write

REQUESTS, IN_FLIGHT, PAUSE_S = 1500, 64, 0.1
TRIES = 3
STEADY_PER_S, STEADY_S = 250, 6
LONG = 100_000
CHOICES = [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]
BODY = json.dumps(
    {"choices": CHOICES, "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
).encode()
HEAD = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
SPAWN = multiprocessing.get_context("spawn")


class Answering(asyncio.Protocol):
    """Answers the requests of one connection, each after the pause that its path names."""

    def __init__(self, flying: Synchronized[int], peak: Synchronized[int]) -> None:
        self.flying, self.peak = flying, peak
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, _, body = self.received.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if b"content-length" in line]
        if not lengths or len(body) < int(lengths[0].split(b":")[1]):
            return
        self.received = b""
        self.flying.value += 1
        self.peak.value = max(self.peak.value, self.flying.value)
        pause_s = float(head.split(b"/", 2)[1])
        loop = asyncio.get_running_loop()
        loop.call_later(pause_s, self.answer) if pause_s else self.answer()

    def answer(self) -> None:
        self.flying.value -= 1
        self.transport.write(HEAD.encode() + BODY)


def serve(port: int, flying: Synchronized[int], peak: Synchronized[int]) -> None:
    """Serve until ended."""

    async def forever() -> None:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2
        )
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Answering(flying, peak), "127.0.0.1", port, backlog=8192
        )
        await server.serve_forever()

    asyncio.run(forever())


def rss_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def opened(port: int, pause_s: float, in_flight: int, cache: bool) -> Any:
    """Aligner's client for a server that takes so long."""
    from aligner.config.recipe import Endpoint
    from aligner.endpoints.client import open_client

    section = Endpoint(
        base_url=f"http://127.0.0.1:{port}/{pause_s}/v1", model="m", max_in_flight=in_flight
    )
    if not cache:
        return open_client(section)
    return open_client(section, cache=Path(tempfile.mkdtemp()) / "replies.sqlite", run="speed")


def ask(word: str) -> Any:
    from aligner.endpoints.request import ChatRequest

    return ChatRequest(messages=({"role": "user", "content": word},))


async def all_at_once(
    port: int, pause_s: float, in_flight: int, cache: bool, requests: int
) -> tuple[float, float]:
    """CPU milliseconds for a request, and requests a second, when all are asked for at once."""
    async with opened(port, pause_s, in_flight, cache) as client:
        await asyncio.gather(*(client.chat(ask(f"first {i}")) for i in range(in_flight)))
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.gather(*(client.chat(ask(str(i))) for i in range(requests)))
        spent, took = time.process_time() - cpu, time.monotonic() - wall
    return 1000 * spent / requests, requests / took


async def steady(port: int, in_flight: int) -> tuple[float, float, float, float]:
    """What the client adds to a reply's time (median and 95th percentile, in milliseconds), CPU
    milliseconds for a request and KiB for each in flight, at one rate of requests."""
    pause_s = 0.9 * in_flight / STEADY_PER_S
    added: list[float] = []

    async def one(client: Any, number: int, begins: float) -> None:
        await asyncio.sleep(begins - time.monotonic())
        began = time.monotonic()
        await client.chat(ask(str(number)))
        if number > STEADY_PER_S * pause_s:  # as many are in flight as will be
            added.append(1000 * (time.monotonic() - began - pause_s))

    requests = int(STEADY_PER_S * (pause_s + STEADY_S))
    async with opened(port, pause_s, in_flight, True) as client:
        await client.chat(ask("first"))
        before, cpu, now = rss_mib(), time.process_time(), time.monotonic()
        tasks = [
            asyncio.create_task(one(client, number, now + number / STEADY_PER_S))
            for number in range(requests)
        ]
        await asyncio.sleep(pause_s + STEADY_S / 2)
        memory = 1024 * (rss_mib() - before) / in_flight
        await asyncio.gather(*tasks)
        spent = 1000 * (time.process_time() - cpu) / requests
    added.sort()
    return statistics.median(added), added[int(0.95 * len(added))], spent, memory


async def long(port: int) -> list[float]:
    """Resident memory in MiB after each fifth of many requests."""
    numbers, sizes = iter(range(LONG)), []

    async def worker(client: Any) -> None:
        for number in numbers:
            await client.chat(ask(str(number)))
            if number % (LONG // 5) == LONG // 5 - 1:
                sizes.append(rss_mib())

    async with opened(port, 0, IN_FLIGHT, True) as client:
        await asyncio.gather(*(worker(client) for _ in range(IN_FLIGHT)))
    return sizes


async def bare(port: int) -> float:
    """CPU milliseconds for a request through the `openai` package alone."""
    import openai

    client = openai.AsyncOpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/{PAUSE_S}/v1")
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def one(word: str) -> None:
        async with slots:
            await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": word}], max_tokens=9
            )

    await asyncio.gather(*(one(f"first {i}") for i in range(IN_FLIGHT)))
    began = time.process_time()
    await asyncio.gather(*(one(str(i)) for i in range(REQUESTS)))
    spent = time.process_time() - began
    await client.close()
    return 1000 * spent / REQUESTS


def _send(answer: Any, work: Callable[..., Any], values: tuple[Any, ...]) -> None:
    answer.send(asyncio.run(work(*values)))


def apart(work: Callable[..., Any], *values: Any) -> Any:
    """The result of a coroutine, in a process of its own."""
    mine, theirs = SPAWN.Pipe(False)
    process = SPAWN.Process(target=_send, args=(theirs, work, values))
    process.start()
    theirs.close()
    with closing(mine):
        result = mine.recv()
    process.join()
    return result


def measure() -> str:
    """Return the text for RESULTS.md."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flying, peak = SPAWN.Value("i", 0, lock=False), SPAWN.Value("i", 0, lock=False)
    server = SPAWN.Process(target=serve, args=(port, flying, peak), daemon=True)
    server.start()
    time.sleep(2)
    try:
        return _text(port, peak)
    finally:
        server.terminate()


def _text(port: int, peak: Synchronized[int]) -> str:
    cpu, many = apart(all_at_once, port, PAUSE_S, IN_FLIGHT, False, REQUESTS)
    cached_cpu, _ = apart(all_at_once, port, PAUSE_S, IN_FLIGHT, True, REQUESTS)
    _, one = apart(all_at_once, port, PAUSE_S, 1, False, 40)
    package = apart(bare, port)
    fast = max(apart(all_at_once, port, 0, IN_FLIGHT, True, 4 * REQUESTS)[1] for _ in range(TRIES))
    text = (
        f"{REQUESTS:,} requests, {IN_FLIGHT} in flight, to a server that takes {PAUSE_S:g} s: "
        f"{cpu:.2f} ms of CPU for each (goal: 1.0), {cached_cpu:.2f} ms with a cache, "
        f"{package:.2f} ms with the `openai` package as it comes; {many:,.0f} requests a second "
        f"against {one:.1f} one at a time, {many / one:.0f} times (goal: 20). To a server that "
        f"takes no time: {fast:,.0f} requests a second with a cache (goal: 900).\n\n"
        f"{STEADY_PER_S} requests a second to servers that are slow enough to have so many in "
        "flight, with a cache (CPU with that of opening connections, one for nearly every request "
        "of the last line); and the most that a server saw when twice as many were asked for at "
        "once:\n\n"
        "| limit | added to a reply, median | 95 % | CPU for a request | memory for one in flight "
        "| most in flight |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    for in_flight in (64, 512, 4096):
        median, slow, spent, memory = min(apart(steady, port, in_flight) for _ in range(TRIES))
        peak.value = 0
        apart(all_at_once, port, 1.0 + in_flight / 1000, in_flight, True, 2 * in_flight)
        text += (
            f"| {in_flight:,} | {median:.1f} ms | {slow:.1f} ms | {spent:.2f} ms | {memory:.0f} "
            f"KiB | {peak.value:,} |\n"
        )
    sizes = ", ".join(f"{size:.0f}" for size in apart(long, port))
    return text + (
        f"\n{LONG:,} requests through one client, {IN_FLIGHT} in flight, with a cache: {sizes} MiB "
        "of memory after each fifth."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help="write the table into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    text = measure()
    print(text)
    if options.write:
        write("endpoints", text)


if __name__ == "__main__":
    main()
