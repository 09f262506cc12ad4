"""Any server that speaks OpenAI's protocol (OpenAI, vLLM, `transformers serve`, llama.cpp, TGI,
Ollama), through `openai`.

The `openai` package is the one owner of retries in this whole package: its `max_retries` repeats
connection errors, timeouts, 408, 409, 429 and 5xx with a growing pause, and honours `Retry-After`.
Nobody else retries. We look over its shoulder with two hooks of its HTTP client: they count the
attempts, tell the rate limiter of each 429, and turn a reply that is no JSON object with an answer
in it into a transport error, so that this too is retried by the same owner.

The key comes from the environment and is handed to the HTTP client only. Every text that leaves
this module (error messages, also those where a server repeats the key, and replies) has it struck
out, and errors carry no trace of the request, whose headers hold it.

Token ids and log-probabilities are read of a prompt that is continued, where a request's `extra`
asks for them. It does not stream, or send tools or images.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from aligner.endpoints.api_keys import Secret
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


@dataclass
class Attempts:
    """What the hooks saw of one request: how often it was sent, the last object read, what was
    wrong with a reply."""

    sent: int = 0
    body: Mapping[str, Any] | None = None
    problem: str = ""


_ATTEMPTS: ContextVar[Attempts] = ContextVar("aligner_attempts")


class OpenAIBackend(Backend):
    """A model behind a server.

    `secret` holds the key, `base_url` ends in /v1 as a rule. `on_throttle` is called at every 429.
    `http_client` is an AsyncClient of the HTTP library that `openai` uses; ours by default, which
    also bounds the time of a whole reply.
    """

    def __init__(
        self,
        base_url: str,
        secret: Secret,
        *,
        timeout_s: float = 600.0,
        max_retries: int = 6,
        on_throttle: Callable[[], None] | None = None,
        http_client: Any = None,
    ) -> None:
        """Raises: UsageError when the `openai` package is not installed."""
        check_installed()
        openai: Any = import_module("openai")
        # what this version of `openai` stands on: httpx, or httpx2 since 3.0
        bases = [base.__module__ for base in openai.DefaultAsyncHttpxClient.__mro__]
        http = next(name for name in bases if name.startswith("httpx"))
        self._http: Any = import_module(http.partition(".")[0])
        self._base_url = base_url
        self._secret = secret
        self._on_throttle = on_throttle
        client = http_client or _bounded_client(
            openai, self._http, timeout_s, trust_env=not secret.is_local
        )
        client.event_hooks["request"].append(self._note_request)
        client.event_hooks["response"].append(self._note_response)
        self._client = openai.AsyncOpenAI(
            api_key=secret.value,
            base_url=base_url,
            timeout=openai.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            max_retries=max_retries,
            http_client=client,
        )
        self._error_type: type[Exception] = openai.OpenAIError

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
        path = "/chat/completions" if request.prompt is None else "/completions"
        attempts = Attempts()
        token = _ATTEMPTS.set(attempts)
        began = time.monotonic()
        failure: LLMError | None = None
        try:
            await self._client.post(path, cast_to=self._http.Response, body=body_of(request))
            assert attempts.body is not None, "a reply without a problem has been read"
            return completion_of(
                attempts.body, request, self._secret, attempts.sent, time.monotonic() - began
            )
        except (self._error_type, BadReply) as error:
            failure = error_of(error, request, attempts.problem, self._base_url, self._secret)
            failure.attempts = attempts.sent
        finally:
            _ATTEMPTS.reset(token)
        # out here it has no context: the original knows the request, and that knows the key
        raise failure

    async def _note_request(self, request: Any) -> None:
        attempts = _ATTEMPTS.get()
        attempts.sent += 1
        attempts.problem = ""

    async def _note_response(self, response: Any) -> None:
        attempts = _ATTEMPTS.get()
        if response.status_code == 429:
            await response.aread()
            if any(code in response.text for code in QUOTA_CODES):
                response.headers["x-should-retry"] = (
                    "false"  # waiting brings no credit; the SDK obeys this header
                )
            elif self._on_throttle is not None:
                self._on_throttle()
        elif response.is_success:
            await response.aread()
            try:
                attempts.body = read_object(
                    self._secret.strike_from_reply(response.content.decode("utf-8", "replace"))
                )
            except BadReply as error:
                attempts.problem = str(error)
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


def _bounded_client(openai: Any, http: Any, timeout_s: float, trust_env: bool) -> Any:
    """An HTTP client whose timeout holds for a whole reply: a server that sends a blank now and
    then is hung too.

    It is the one over aiohttp that `openai` brings, which takes less than half of the CPU time for
    a request.
    """

    class BoundedClient(openai.DefaultAioHttpClient):
        async def send(self, request: Any, **options: Any) -> Any:
            try:
                return await asyncio.wait_for(super().send(request, **options), timeout_s)
            except asyncio.TimeoutError:
                raise http.ReadTimeout(
                    f"no whole reply within {timeout_s:g} s", request=request
                ) from None

    return BoundedClient(trust_env=trust_env)
