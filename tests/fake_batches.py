"""A server on this machine with a batch API: files up, batches that take a few looks, files down.

    with FakeBatches(answer) as server:
        ...  # server.base_url; server.batches is what it has; server.log what it was asked

`answer` gives the result of a line: a text, a (status, body) pair, the code of an error, or None to
leave the line out. `endings` says how the batches end, in order, the last one for ever: a status,
or for a batch that is refused the code of the error. `looks`, in the same way, says how often each
is looked at before that. Chat requests by themselves are answered "direct".
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Outcome = str | tuple[int, Any] | None
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def reply_body(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    """The body of a reply."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": USAGE}


class FakeBatches:
    """The server; it runs inside `with`."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Outcome] = lambda line: "so",
        *,
        endings: Sequence[str] = ("completed",),
        looks: Sequence[int] = (1,),
    ) -> None:
        self.answer = answer
        self.endings = endings
        self.looks = looks
        self.files: dict[str, str] = {}
        self.batches: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.faults: dict[str, list[int]] = {}
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True

    @property
    def base_url(self) -> str:
        """The address, with /v1."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeBatches:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def submitted(self) -> list[str]:
        """The custom_id of every request that is in a batch, once for each."""
        lines = [self.lines(batch) for batch in self.batches]
        return [line["custom_id"] for part in lines for line in part]

    def lines(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """The requests of a batch."""
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]

    def handle(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Answer one HTTP request. `faults`: by "METHOD path", statuses that come after what was
        asked for was done."""
        path = path.partition("?")[0].removeprefix("/v1")
        with self._lock:
            self.log.append(f"{method} {path}")
            status, answer = self._done(method, path, body)
            faults = self.faults.get(f"{method} {path}", [])
            if faults and (fault := faults.pop(0)):
                return fault, {"error": {"message": f"scripted {fault}"}}
            return status, answer

    def _done(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/chat/completions":
            return 200, reply_body("direct")
        if method == "POST" and path == "/files":
            name = f"file-{len(self.files)}"
            self.files[name] = _uploaded(body)
            return 200, {"id": name, "object": "file", "purpose": "batch"}
        if method == "POST" and path == "/batches":
            return 200, self._make(json.loads(body))
        if path == "/batches":
            data = [self._look(batch, False) for batch in reversed(self.batches)]
            return 200, {"object": "list", "data": data, "has_more": False}
        if path.startswith("/batches/"):
            return 200, self._look(self.batches[int(path.rpartition("-")[2])], True)
        if path.startswith("/files/"):
            return 200, self.files[path.split("/")[2]]
        return 404, {"error": {"message": "no such path"}}

    def _make(self, asked: dict[str, Any]) -> dict[str, Any]:
        number = len(self.batches)
        batch = {
            "id": f"batch-{number}",
            "object": "batch",
            "status": "validating",
            "created_at": 1,
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            **asked,
        }
        self.batches.append(batch)
        return self._look(batch, False)

    def _look(self, batch: dict[str, Any], counts: bool) -> dict[str, Any]:
        self._seen[batch["id"]] += counts
        number = int(batch["id"].rpartition("-")[2])
        looks = self.looks[min(number, len(self.looks) - 1)]
        if batch["status"] == "validating" and self._seen[batch["id"]] >= looks:
            self._end(batch, self.endings[min(number, len(self.endings) - 1)])
        lines = len(self.lines(batch))
        done = lines if batch["status"] == "completed" else 0
        return {**batch, "request_counts": {"total": lines, "completed": done, "failed": 0}}

    def _end(self, batch: dict[str, Any], ending: str) -> None:
        if ending not in ("completed", "expired", "cancelled"):
            error = {"code": ending, "message": f"refused: {ending}", "line": 1}
            batch |= {"status": "failed", "errors": {"object": "list", "data": [error]}}
            return
        good, bad = [], []
        for line in self.lines(batch):
            result = self._result(line)
            if result is not None:
                is_good = (result["response"] or {}).get("status_code") == 200
                (good if is_good else bad).append(json.dumps(result))
        for kind, results in (("output_file_id", good), ("error_file_id", bad)):
            if results:
                batch[kind] = f"{kind}-{batch['id']}"
                self.files[batch[kind]] = "\n".join(reversed(results)) + "\n"
        batch["status"] = ending

    def _result(self, line: dict[str, Any]) -> dict[str, Any] | None:
        outcome = self.answer(line)
        result: dict[str, Any] = {"id": "r", "custom_id": line["custom_id"], "error": None}
        if outcome is None:
            return None
        if isinstance(outcome, str) and outcome in ("batch_expired", "batch_cancelled"):
            return {**result, "response": None, "error": {"code": outcome, "message": outcome}}
        status, body = (200, reply_body(outcome)) if isinstance(outcome, str) else outcome
        return {**result, "response": {"status_code": status, "request_id": "q", "body": body}}


def _uploaded(body: bytes) -> str:
    """The content of the file in a form."""
    boundary = body.partition(b"\r\n")[0]
    parts = [part for part in body.split(boundary) if b"filename=" in part]
    return parts[0].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n").decode()


def _handler_of(server: FakeBatches) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer("GET", b"")

        def do_POST(self) -> None:
            if "content-length" in self.headers:
                body = self.rfile.read(int(self.headers["content-length"]))
            else:
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            self._answer("POST", body)

        def _answer(self, method: str, body: bytes) -> None:
            status, answer = server.handle(method, self.path, body)
            content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("retry-after-ms", "1")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: Any) -> None:
            """Say nothing."""

    return Handler
