"""A server on this machine that speaks as much of OpenAI's protocol as a test wants, and misbehaves
on order.

    answers = [Answer(429, headers={"retry-after-ms": "1"}), Answer(text="hello")]
    with FakeEndpoint(answers) as server:
        ...  # server.base_url; server.bodies has what was asked, server.peak how many at the same
             time

A list is answered in order, the last one for ever; a function is given the body of each request.
The standard library's server resets connections under load and answers slowly unless the queue is
long and replies go out in one piece. `Continues` is such a function, with a small model behind it.
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
    status and headers. `beside`: it is held back until so many were asked for at the same time."""

    status: int = 200
    text: str | None = "hello"
    finish_reason: str = "stop"
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drip_s: float = 0.0
    beside: int = 0

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
            deadline = time.monotonic() + 120.0
            while self.peak < found.beside and time.monotonic() < deadline:
                self._stop.wait(0.005)
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


class Continues:
    """Answers /v1/completions with a model, as servers of three kinds do.

    "ids": vLLM: token ids and all settings in, ids and log-probabilities out. "names": an older
    one, whose ids are in the names of the tokens. "prompt": ids in, text out. "text": `transformers
    serve`: text in and out, with the tokenizer's special tokens in front.
    """

    def __init__(self, model: Any, tokenizer: Any, kind: str = "ids") -> None:
        self.model, self.tokenizer, self.kind = model, tokenizer, kind
        self._lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> Answer:
        refused = self._refused(body)
        if refused:
            return Answer(400, body={"error": {"message": refused}})
        prompt = body["prompt"]
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        with self._lock:
            said = self._continued(ids, body)
        texts = said.token_ids[:-1] if said.finish_reason == "stop" else said.token_ids
        choice: dict[str, Any] = {
            "index": 0,
            "text": self.tokenizer.decode(texts, skip_special_tokens=True),
            "finish_reason": said.finish_reason,
        }
        names = [f"token_id:{token}" for token in said.token_ids]
        if self.kind in ("ids", "names"):
            choice["logprobs"] = {"token_logprobs": said.raw_logps, "tokens": names}
        if self.kind == "ids":
            choice["token_ids"] = said.token_ids
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(said.token_ids)}
        return Answer(body={"choices": [choice], "usage": usage})

    def _refused(self, body: dict[str, Any]) -> str:
        unknown = {"return_token_ids", "stop_token_ids", "top_k"} & set(body)
        if unknown and self.kind not in ("ids", "names"):
            return f"Unexpected fields in the request: {sorted(unknown)}"
        if self.kind == "text" and not isinstance(body["prompt"], str):
            return "prompt must be a string."
        return ""

    def _continued(self, ids: list[int], body: dict[str, Any]) -> Any:
        from aligner.generation.hf import HfEngine
        from aligner.generation.requests import Request
        from aligner.generation.sampling import Sampling

        sampling = Sampling(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=body.get("top_k", 0),
            min_p=body.get("min_p", 0.0),
            repetition_penalty=body.get("repetition_penalty", 1.0),
            seed=body["seed"],
        )
        stops = body.get("stop_token_ids", [self.tokenizer.eos_token_id])
        return HfEngine(self.model).generate([Request(ids, sampling, tuple(stops))])[0][0]


_KEPT: list[socket.socket] = []


def closed_port() -> int:
    """A port on this machine that nobody listens on, and that nobody else gets from the system
    while this process runs; who asks for it by its number may listen there."""
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    _KEPT.append(probe)
    return int(probe.getsockname()[1])
