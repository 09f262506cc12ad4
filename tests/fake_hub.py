"""A hub on this machine: what `huggingface_hub` asks of one to push, and what it got."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class FakeHub:
    """`with FakeHub() as hub:`; `hub.url` is its address.

    `repos`: name -> whether it is private. `files`: repository -> place -> content. `refuses`:
    status that every request to write gets. `asked`: the method and path of each request.
    """

    def __init__(self, repos: dict[str, bool] | None = None, refuses: int | None = None) -> None:
        self.repos = dict(repos or {})
        self.files: dict[str, dict[str, bytes]] = {}
        self.refuses = refuses
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()

    def __enter__(self) -> FakeHub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the JSON that a request gets."""
        parts = path.split("?")[0].strip("/").split("/")
        if method == "GET" and parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            if repo not in self.repos:
                return 404, {"error": "Repository not found"}
            return 200, {"id": repo, "modelId": repo, "private": self.repos[repo], "siblings": []}
        if self.refuses is not None:
            return self.refuses, {"error": "you may not"}
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        repo, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            answers = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
            ]
            return 200, {"files": answers}
        assert action == "commit"
        for line in body.decode().splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                content = base64.b64decode(item["value"]["content"])
                self.files.setdefault(repo, {})[item["value"]["path"]] = content
        commit = {"commitUrl": f"{self.url}/{repo}/commit/abc", "commitOid": "abc"}
        return 200, {"success": True, **commit, "hookOutput": ""}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        owner = wanted.get("organization")
        repo = f"{owner}/{wanted['name']}" if owner else wanted["name"]
        is_private = bool(wanted.get("private") or wanted.get("visibility") == "private")
        is_new = repo not in self.repos
        self.repos.setdefault(repo, is_private)
        return (200 if is_new else 409), {"url": f"{self.url}/{repo}", "id": repo, "name": repo}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("Authorization"))
            status, value = hub.answer(self.command, self.path, body)
            text = json.dumps(value).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
