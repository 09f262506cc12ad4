"""Any server that speaks OpenAI's protocol (OpenAI, vLLM, `transformers serve`, llama.cpp, TGI,
Ollama), through `openai`.

The `openai` package is the one owner of retries in this whole package: its `max_retries` repeats
connection errors, timeouts, 408, 409, 429 and 5xx with a growing pause, and honours `Retry-After`.
Nobody else retries. We look over its shoulder from its HTTP client (`http_client.py`): there
attempts are counted, the rate limiter hears of each 429, and a reply that is no JSON object with
an answer in it becomes a transport error, so that this too is retried by the same owner. There too
the first attempt is made past `openai`, which gets to see it only when it fails: building a request
takes it longer than all else here takes together.

The key comes from the environment and is handed to the HTTP client only. Every text that leaves
this module (error messages, also those where a server repeats the key, and replies) has it struck
out, and errors carry no trace of the request, whose headers hold it.

Token ids and log-probabilities are read of a prompt that is continued, where a request's `extra`
asks for them. It does not stream, or send tools or images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from aligner.endpoints.api_keys import Secret
from aligner.endpoints.attempts import ATTEMPTS, Attempts
from aligner.endpoints.openai_errors import QUOTA_CODES, error_of, refuse_reserved
from aligner.endpoints.openai_reply import BadReply, completion_of, read_object
from aligner.endpoints.request import (
    Backend,
    ChatRequest,
    Completion,
    LLMError,
    name_of,
    sample_seed,
)
from aligner.errors import UsageError

INSTALL = "pip install 'aligner-toolkit[endpoints]'"
CONNECT_TIMEOUT_S = 10.0
JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class OpenAIBackend(Backend):
    """A model behind a server.

    `secret` holds the key, `base_url` ends in /v1 as a rule. `connections`: most at a time.
    `on_throttle` is called at every 429. `http_client` is an AsyncClient of httpx2, in the place of
    ours.
    """

    def __init__(
        self,
        base_url: str,
        secret: Secret,
        *,
        timeout_s: float = 600.0,
        max_retries: int = 6,
        connections: int = 0,
        on_throttle: Callable[[], None] | None = None,
        http_client: Any = None,
    ) -> None:
        """Raises: UsageError when the `openai` package is not installed, or this machine does not
        allow so many connections."""
        check_installed()
        openai: Any = import_module("openai")
        from aligner.endpoints.http_client import HttpClient

        self._base_url = base_url
        root = base_url.rstrip("/")
        self._urls = {True: f"{root}/chat/completions", False: f"{root}/completions"}
        self._secret = secret
        self._on_throttle = on_throttle
        connect_timeout_s = min(timeout_s, CONNECT_TIMEOUT_S)
        self._direct = None
        if http_client is not None:
            http_client.event_hooks["request"].append(self._request_hook)
            http_client.event_hooks["response"].append(self._response_hook)
        else:
            http_client = self._direct = HttpClient(
                base_url,
                timeout_s=timeout_s,
                connect_timeout_s=connect_timeout_s,
                trust_env=not secret.is_local,
                connections=connections,
                on_reply=self._note_reply,
            )
        self._client = openai.AsyncOpenAI(
            api_key=secret.value,
            base_url=base_url,
            timeout=openai.Timeout(timeout_s, connect=connect_timeout_s),
            max_retries=max_retries,
            http_client=http_client,
        )
        if self._direct is not None:
            self._direct.take_headers(self._client)
        self._error_type: type[Exception] = openai.OpenAIError
        self._http: Any = import_module("httpx2")

    def capabilities(self) -> frozenset[str]:
        """Chat, raw continuation, seeds and replies by a schema; whether the server has all of them
        shows when it is asked."""
        return frozenset({"chat", "complete", "seed", "schema"})

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def chat(self, request: ChatRequest) -> Completion:
        """Send one request, with all its retries.

        Raises: LLMError of every kind but "budget".
        """
        assert request.model, f"{name_of(request)} names no model"
        url = self._urls[request.prompt is None]
        content = JSON.encode(body_of(request)).encode()
        attempts = Attempts()
        token = ATTEMPTS.set(attempts)
        began = time.monotonic()
        failure: LLMError | None = None
        try:
            if self._direct is None or not await self._direct.try_once(url, content):
                await self._client.post(url, cast_to=self._http.Response, content=content)
            assert attempts.body is not None, "a reply without a problem has been read"
            return completion_of(
                attempts.body, request, self._secret, attempts.sent, time.monotonic() - began
            )
        except (self._error_type, BadReply) as error:
            failure = error_of(error, request, attempts.problem, self._base_url, self._secret)
            failure.attempts = attempts.sent
        finally:
            ATTEMPTS.reset(token)
        # out here it has no context: the original knows the request, and that knows the key
        raise failure

    def _note_reply(self, status: int, content: bytes) -> dict[str, str]:
        """Read what came, and return the headers that tell `openai` what it cannot see. Raises:
        BadReply."""
        if status == 429:
            text = content.decode("utf-8", "replace")
            if any(code in text for code in QUOTA_CODES):
                return {"x-should-retry": "false"}  # waiting brings no credit
            if self._on_throttle is not None:
                self._on_throttle()
        elif 200 <= status < 300:
            attempts = ATTEMPTS.get()
            text = content.decode("utf-8", "replace")
            try:
                attempts.body = read_object(self._secret.strike_from_reply(text))
            except BadReply as error:
                attempts.problem = str(error)
                raise
        return {}

    async def _request_hook(self, request: Any) -> None:
        ATTEMPTS.get().count()

    async def _response_hook(self, response: Any) -> None:
        await response.aread()
        try:
            response.headers.update(self._note_reply(response.status_code, response.content))
        except BadReply as error:
            raise self._http.DecodingError(str(error), request=response.request) from None


def body_of(request: ChatRequest) -> dict[str, Any]:
    """Return the request body. Every sampling parameter is sent, so that no default of a server
    applies unseen."""
    refuse_reserved(request)
    body: dict[str, Any] = {"model": request.model}
    if request.prompt is None:
        body["messages"] = [dict(message) for message in request.messages]
    else:
        text = isinstance(request.prompt, str)
        body["prompt"] = request.prompt if text else list(request.prompt)
    body |= {"temperature": request.temperature, "top_p": request.top_p}
    if "max_completion_tokens" not in request.extra:
        body["max_tokens"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.seed is not None:
        body["seed"] = sample_seed(request)
    body = {key: value for key, value in body.items() if value is not None}
    return body | dict(request.extra)


def check_installed() -> None:
    """Raises: UsageError when the `openai` package, or what it sends requests with, is not
    installed; imports neither."""
    for name in ("openai", "aiohttp"):
        if find_spec(name) is None:
            raise UsageError(
                f"a model behind a server needs the `{name}` package, which is not installed",
                INSTALL,
            )
