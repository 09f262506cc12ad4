"""What a request to a language model costs: CPU time of the client, and throughput with many in
flight.

    python -m benchmarks.speed.endpoints [--write]

A server on this machine, in a process of its own, answers every request after a tenth of a second.
Compared with the `openai` package by itself, as it is used by default. With `--write` the line goes
into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import time

from benchmarks.results import write

REQUESTS, IN_FLIGHT, DELAY_S = 1500, 64, 0.1
CHOICES = [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]
BODY = json.dumps(
    {"choices": CHOICES, "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
).encode()


async def next_head(reader: asyncio.StreamReader) -> bytes:
    """The head of the next request; nothing when the client has closed the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    while head := await next_head(reader):
        lengths = [
            line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        ]
        await reader.readexactly(int(lengths[0].split(b":")[1]))
        await asyncio.sleep(DELAY_S)
        header = (
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
            f"{len(BODY)}\r\n\r\n"
        )
        writer.write(header.encode() + BODY)
        await writer.drain()


def serve(port: int) -> None:
    """Serve until ended."""

    async def forever() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(forever())


async def ours(port: int, requests: int, in_flight: int) -> tuple[float, float]:
    """CPU seconds and wall seconds for so many requests through aligner's client."""
    from aligner.config.recipe import Endpoint
    from aligner.endpoints.client import open_client
    from aligner.endpoints.request import ChatRequest

    section = Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="m", max_in_flight=in_flight)
    async with open_client(section) as client:

        def ask(word: str) -> ChatRequest:
            return ChatRequest(messages=({"role": "user", "content": word},))

        await asyncio.gather(*(client.chat(ask(f"first {i}")) for i in range(in_flight)))
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.gather(*(client.chat(ask(str(i))) for i in range(requests)))
        return time.process_time() - cpu, time.monotonic() - wall


async def bare(port: int) -> float:
    """CPU seconds for the same through the package alone."""
    import openai

    client = openai.AsyncOpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1")
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
    return spent


def measure() -> str:
    """Return the line for RESULTS.md."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    time.sleep(2)
    cpu, wall = asyncio.run(ours(port, REQUESTS, IN_FLIGHT))
    _, alone = asyncio.run(ours(port, 40, 1))
    package = asyncio.run(bare(port))
    server.terminate()
    many, one = REQUESTS / wall, 40 / alone
    return (
        f"{REQUESTS:,} requests, {IN_FLIGHT} in flight, to a server that takes {DELAY_S:g} s: "
        f"{1000 * cpu / REQUESTS:.2f} ms of CPU "
        f"for each (goal: under 2), {1000 * package / REQUESTS:.2f} ms with the `openai` package "
        "as it comes; "
        f"{many:,.0f} requests a second against {one:.1f} one at a time, {many / one:.0f} times "
        "(goal: 20)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help="write the line into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    text = measure()
    print(text)
    if options.write:
        write("endpoints", text)


if __name__ == "__main__":
    main()
