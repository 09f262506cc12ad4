"""The local page for votes: a server for one person on this machine.

Nothing but this machine can reach it, and on this machine nothing but the page whose address holds
the token: a request with another `Host` (DNS rebinding) or `Origin` (another site) is refused, and
without the token there is nothing. The page gets a prompt and two answers as text, never the name
of a model. The standard library's server is enough for one person; a connection that says nothing
is closed.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from types import TracebackType
from typing import Any

from aligner.arena.battle.sheets import Item
from aligner.arena.voting.ballot import VERDICTS, Ballot, OutOfTurn
from aligner.errors import UsageError

HOST = "127.0.0.1"
LARGEST_REQUEST = 4096
PATIENCE_S = 30.0
LONGEST_LOOK_S = 3600.0
"""A vote that took longer was made after a pause: its time says nothing."""
LAST_ANSWER_S = 5.0
"""How long closing waits for a request that is being answered."""

Record = dict[str, Any]

OPEN_IT = "Open the whole address that the command printed, on the machine that it runs on.\n"


class VoteServer:
    """Serves a ballot inside `with`, from a thread of its own.

    `url`: the address with the token. `finished`: set when the person has said that it is enough
    and was answered. Leaving the `with` waits for what the page has asked already: a vote under way
    is kept, and the page hears of it.
    """

    def __init__(self, ballot: Ballot, port: int = 0) -> None:
        """Raises: UsageError for a port that is taken."""
        self.ballot = ballot
        self.finished = threading.Event()
        self.answering = threading.Lock()
        """Held while something that the page asked is done and answered."""
        self.token = secrets.token_urlsafe(24)
        self._since = time.monotonic()
        try:
            self._server = _Server((HOST, port), _handler_of(self))
        except OSError as error:
            raise UsageError(
                f"--port {port} cannot be used: {error.strerror}", "choose another, or leave it out"
            ) from error
        self.port = self._server.server_address[1]

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser that was given the address may say it talks to."""
        return f"{HOST}:{self.port}", f"localhost:{self.port}"

    def __enter__(self) -> VoteServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        if self.answering.acquire(timeout=LAST_ANSWER_S):
            self.answering.release()
        self._server.server_close()

    def state(self) -> Record:
        """What the page shows: the pair whose turn it is, and how far the votes are."""
        ballot = self.ballot
        turn, total = ballot.turn, len(ballot.sheets)
        record: Record = {
            "turn": turn,
            "done": len(ballot.cast),
            "total": total,
            "pairs": total // 2,
            "taken": ballot.taken,
            "can_go_back": ballot.can_go_back,
        }
        if turn is None:
            return record
        sheet = ballot.sheets[turn]
        cast = ballot.cast.get(turn)
        return record | {
            "is_second_order": turn >= total // 2,
            "verdict": None if cast is None else cast.verdict,
            "prompt": _turns(sheet.item),
            "first": {"text": sheet.first.text, "is_cut": sheet.first.is_cut},
            "second": {"text": sheet.second.text, "is_cut": sheet.second.is_cut},
        }

    def act(self, path: str, said: Record) -> Record | None:
        """Do what the page asks, and return the new state; None for what it cannot ask.

        Raises: OutOfTurn.
        """
        turn = said.get("turn")
        if path == "finish":
            pass  # the handler ends it, once the page was answered
        elif path == "back":
            self.ballot.back()
        elif path == "skip" and type(turn) is int:
            self.ballot.skip(turn)
        elif path == "vote" and type(turn) is int and said.get("verdict") in VERDICTS:
            seconds = time.monotonic() - self._since
            self.ballot.vote(turn, said["verdict"], seconds if seconds < LONGEST_LOOK_S else 0.0)
        else:
            return None
        self._since = time.monotonic()
        return self.state()


def _turns(item: Item) -> list[dict[str, str]]:
    if isinstance(item.prompt, str):
        return [{"role": "user", "text": item.prompt}]
    return [{"role": str(turn["role"]), "text": str(turn["content"])} for turn in item.prompt]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


class _Refused(Exception):
    """A request that gets nothing but a status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _handler_of(server: VoteServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE_S
        server_version, sys_version = "aligner", ""

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the address holds the token."""

        def do_GET(self) -> None:
            with self._refusing():
                path = self._path()
                if path == "":
                    page, policy = page_and_policy()
                    self._send(200, page, "text/html; charset=utf-8", policy)
                elif path == "state":
                    self._check_site()
                    self._json(200, server.state())
                else:
                    raise _Refused(404)

        def do_POST(self) -> None:
            with self._refusing():
                path = self._path()
                self._check_site()
                said = self._body()
                with server.answering:
                    self._act(path, said)

        def _act(self, path: str, said: Record) -> None:
            try:
                state = server.act(path, said)
            except OutOfTurn:
                self._json(409, server.state())
                return
            except OSError as error:  # a full disk: the vote was not kept, and the page says so
                self._json(507, {"error": error.strerror or type(error).__name__})
                return
            if state is None:
                raise _Refused(400)
            try:
                self._json(200, state)
            finally:
                if path == "finish":
                    server.finished.set()

        @contextmanager
        def _refusing(self) -> Iterator[None]:
            try:
                yield
            except _Refused as refused:
                self.close_connection = True
                self._send(refused.status, OPEN_IT.encode(), "text/plain; charset=utf-8")

        def _path(self) -> str:
            """What stands behind the token."""
            hosts = self.headers.get_all("Host") or []
            if len(hosts) != 1 or hosts[0] not in server.hosts:
                raise _Refused(403)
            token, slash, rest = self.path.removeprefix("/").partition("/")
            is_known = secrets.compare_digest(token.encode(), server.token.encode())
            if not (slash and is_known):
                raise _Refused(404)
            return rest

        def _check_site(self) -> None:
            """Refuse what the page of another site asks."""
            origin = self.headers.get("Origin")
            if origin is not None and origin not in [f"http://{host}" for host in server.hosts]:
                raise _Refused(403)
            if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
                raise _Refused(403)

        def _body(self) -> Record:
            """The JSON that was sent."""
            length = self.headers.get("Content-Length", "")
            if self.headers.get_content_type() != "application/json":
                raise _Refused(415)
            if not (length.isascii() and length.isdigit() and int(length) <= LARGEST_REQUEST):
                raise _Refused(413)
            try:
                said = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError) as error:
                raise _Refused(400) from error
            if not isinstance(said, dict):
                raise _Refused(400)
            return said

        def _json(self, status: int, record: Record) -> None:
            body = json.dumps(record).encode()
            self._send(status, body, "application/json; charset=utf-8")

        def _send(self, status: int, body: bytes, kind: str, policy: str = "") -> None:
            self.send_response(status)
            headers = {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Content-Security-Policy": policy or "default-src 'none'; frame-ancestors 'none'",
                **SAFETY,
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


SAFETY = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@cache
def page_and_policy() -> tuple[bytes, str]:
    """The page, and a policy that lets only its own style and script run."""
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    style, script = (_hash_of(page, name) for name in ("style", "script"))
    policy = (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode(), policy


def _hash_of(page: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert found, tag
    return f"'sha256-{base64.b64encode(sha256(found[1].encode()).digest()).decode()}'"
