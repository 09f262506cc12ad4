"""The HTTP client that the `openai` package sends with: aiohttp, and nothing between the two.

`openai` stands on httpx2, whose layers (authentication, redirects, hooks, streams, a second pass
over headers and address) cost more than all else that a request needs. Here its request goes to
aiohttp as it is, and the whole reply comes back in one piece. What goes wrong on the way becomes
one of the errors of httpx2 that `openai` knows.

Who retries is `openai` alone. Most requests need no retry, so the first attempt is made without it
(`try_once`); what fails is handed to it as the outcome of its own first attempt, and it does the
rest.

It sends JSON and nothing else, and opens as many connections as requests come: their limit is kept
elsewhere. It keeps no cookies, and does not read ~/.netrc, whose entries would compete with the
key.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
from multidict import CIMultiDict

from aligner.endpoints.attempts import ATTEMPTS, Attempts
from aligner.endpoints.openai_reply import BadReply
from aligner.errors import UsageError

KEEPALIVE_S = 4.0  # uvicorn closes after 5: a request must not meet that
OTHER_FILES = 256  # what a process has open beside its connections
ENCODED = ("content-encoding", "transfer-encoding", "content-length")
READ = httpx2.ByteStream(b"")  # `on_reply` has it

OnReply = Callable[[int, bytes], dict[str, str]]
"""Looks at a status and a body, and returns headers to be added; raises BadReply."""


class Sending(httpx2.Request):
    """A request as `openai` built it, for aiohttp."""

    def __init__(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> None:
        # not the base's: that computes headers and a stream which nobody reads
        self.method = method
        self.url = _parsed(url)
        self.headers: Any = headers
        self.address = url
        self.body = body


class HttpClient(httpx2.AsyncClient):
    """Sends over aiohttp. `timeout_s` holds for a whole reply: a server that sends a blank now and
    then is hung too. `connections`: most at a time. `on_reply` is called with what came."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        connect_timeout_s: float,
        trust_env: bool,
        connections: int,
        on_reply: OnReply,
    ) -> None:
        _allow_connections(connections)
        super().__init__(transport=httpx2.AsyncBaseTransport(), trust_env=False)
        self._limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_timeout_s)
        self._timeout_s = timeout_s
        self._ssl = httpx2.create_ssl_context(trust_env=trust_env)
        self._proxy = _proxy_of(base_url) if trust_env else None
        self._on_reply = on_reply
        self._first_headers: CIMultiDict[str] = CIMultiDict()
        self._session: aiohttp.ClientSession | None = None

    def take_headers(self, client: Any) -> None:
        """Send first attempts with the headers that `openai` sends with every request."""
        for name, value in {**client.auth_headers, **client.default_headers}.items():
            if isinstance(value, str):  # else one that is left out
                self._first_headers[name] = value

    async def try_once(self, url: str, body: bytes) -> bool:
        """Send a request. True: it was answered. False: `openai` is to send it, and gets what came
        of this attempt."""
        attempts = ATTEMPTS.get()
        try:
            response = await self._attempt(
                Sending("POST", url, self._first_headers, body), attempts
            )
        except httpx2.RequestError as error:
            attempts.outcome = error
            return False
        if response.is_success:
            return True
        attempts.outcome = response
        return False

    def build_request(self, method: str, url: Any, **parts: Any) -> httpx2.Request:
        """Take what `openai` has built."""
        return Sending(method, str(url), CIMultiDict(parts["headers"]), parts["content"])

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """Send, and read the whole reply. Raises: an error of httpx2 that `openai` retries."""
        assert isinstance(request, Sending), "built by build_request"
        attempts = ATTEMPTS.get()
        outcome, attempts.outcome = attempts.outcome, None
        if isinstance(outcome, httpx2.RequestError):
            raise outcome
        return outcome or await self._attempt(request, attempts)

    async def _attempt(self, request: Sending, attempts: Attempts) -> httpx2.Response:
        attempts.count()
        try:
            status, headers, content = await self._exchange(request)
            added = self._on_reply(status, content)
        except TimeoutError as error:
            connected = not isinstance(error, aiohttp.ConnectionTimeoutError)
            said = f"no whole reply within {self._timeout_s:g} s" if connected else str(error)
            raise httpx2.ReadTimeout(said, request=request) from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.ConnectError(str(error) or repr(error), request=request) from error
        except BadReply as error:
            raise httpx2.DecodingError(str(error), request=request) from None
        if 200 <= status < 300:
            return httpx2.Response(status, stream=READ, request=request)
        plain = {name: value for name, value in headers.items() if name.lower() not in ENCODED}
        return httpx2.Response(status, headers=plain | added, content=content, request=request)

    async def _exchange(self, request: Sending) -> tuple[int, Any, bytes]:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=self._ssl)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=self._limits
            )
        async with self._session.request(
            request.method,
            request.address,
            data=request.body,
            headers=request.headers,
            proxy=self._proxy,
        ) as response:
            return response.status, response.headers, await response.read()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
        await super().aclose()


@lru_cache(maxsize=16)
def _parsed(url: str) -> httpx2.URL:
    return httpx2.URL(url)


def _proxy_of(base_url: str) -> str | None:
    """Return the proxy that the environment names for an address. Raises: UsageError for one of a
    kind that aiohttp does not speak."""
    parts = urlsplit(base_url)
    assert parts.hostname is not None, "the address has been looked at"
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname):
        return None
    address = proxy if "://" in proxy else f"http://{proxy}"
    kind = urlsplit(address).scheme
    if kind not in ("http", "https"):
        raise UsageError(
            f"endpoint: the environment names a proxy of the kind {kind}:// for {parts.hostname}, "
            "which cannot be used here",
            "name one with http://, or add the host to NO_PROXY",
        )
    return address


def _allow_connections(wanted: int) -> None:
    """Raise this process's limit of open files where it would be too low. Raises: UsageError where
    the system does not let it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UsageError(
            f"endpoint: {wanted} requests in flight need {needed} open files, and this process may "
            f"have {hard}",
            "lower max_in_flight, or raise the limit of the system (ulimit -n)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
