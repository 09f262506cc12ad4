"""A server on this machine that speaks as much of OpenAI's protocol as a test wants, and misbehaves
on order.

    answers = [Answer(429, headers={"retry-after-ms": "1"}), Answer(text="hello")]
    with FakeEndpoint(answers) as server:
        ...  # server.base_url; server.bodies has what was asked, server.peak how many at the same
             time

A list is answered in order, the last one for ever; a function is given the body of each request.
The standard library's server resets connections under load and answers slowly unless the queue is
long and replies go out in one piece.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One reply: a text in the usual form, or `body` (an object, or bytes as they are) with a
    status and headers."""

    status: int = 200
    text: str | None = "hello"
    finish_reason: str = "stop"
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drip_s: float = 0.0

    def content(self, path: str) -> bytes:
        """The body as it goes over the wire."""
        if isinstance(self.body, bytes):
            return self.body
        if self.body is not None:
            return json.dumps(self.body).encode()
        if self.status >= 400:
            return json.dumps({"error": {"message": f"scripted {self.status}"}}).encode()
        said = (
            {"message": {"role": "assistant", "content": self.text}}
            if "chat" in path
            else {"text": self.text}
        )
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return json.dumps(
            {"choices": [{**said, "finish_reason": self.finish_reason}], "usage": usage}
        ).encode()


Answers = Sequence[Answer] | Callable[[dict[str, Any]], Answer]


class FakeEndpoint:
    """The server; it runs inside `with`."""

    def __init__(self, answers: Answers = (Answer(),)) -> None:
        self.answers = answers
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.in_flight = self.peak = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))

    @property
    def base_url(self) -> str:
        """The address, with /v1."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeEndpoint:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Answer:
        """Write a request down and return what the script has for it, after its delay."""
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.paths.append(path)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
        try:
            answers = self.answers
            found = answers(body) if callable(answers) else answers[min(number, len(answers) - 1)]
            self._stop.wait(found.delay_s)
            return found
        finally:
            with self._lock:
                self.in_flight -= 1

    def drip(self, write: Callable[[bytes], Any], pause_s: float) -> None:
        """Send a blank now and then, for as long as the other side listens."""
        end = time.monotonic() + 30.0
        while not self._stop.wait(pause_s) and time.monotonic() < end:
            write(b" ")


class _Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what some tests are about."""


def _handler_of(endpoint: FakeEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = endpoint.answer(self.path, dict(self.headers.items()), body)
            content = answer.content(self.path)
            self.send_response(answer.status)
            for name, value in {"content-type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content) + (10_000 if answer.drip_s else 0)))
            self.end_headers()
            if answer.drip_s:
                endpoint.drip(self._write_now, answer.drip_s)
            self.wfile.write(content)

        def _write_now(self, data: bytes) -> None:
            self.wfile.write(data)
            self.wfile.flush()

        def log_message(self, format: str, *values: Any) -> None:
            """Say nothing."""

    return Handler


def closed_port() -> int:
    """A port on this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
