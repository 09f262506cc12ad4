"""What is asked of a language model and what comes back: the types that every part of this package
shares.

A `ChatRequest` says everything that decides the reply, so two equal requests are the same question:
the cache, the coalescing of requests in flight and a recording all go by `request_key`. Who wants
several replies to one question numbers them with `sample_index`. Nothing here talks to anyone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, Protocol

from aligner.errors import EndpointError, Problem

Kind = Literal["fatal", "content_filter", "context_length", "unavailable", "bad_reply", "budget"]

DATA_FAILURES = ("content_filter", "context_length")
NOT_IN_KEY = ("purpose", "urgent")


@dataclass(frozen=True)
class ChatRequest:
    """One question. What is left at its default (None, or an empty model) is taken from the
    recipe's endpoint.

    `messages` are {"role", "content"} mappings; `prompt` is text to be continued as it stands, in
    their place (set by `complete`), or its token ids. `purpose` is for the accounts
    only. `extra` are further fields of the request body. `urgent`: not to be collected with others
    into a batch that takes hours.
    """

    messages: tuple[Mapping[str, str], ...] = ()
    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    sample_index: int = 0
    purpose: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | tuple[int, ...] | None = None
    urgent: bool = False

    def __post_init__(self) -> None:
        assert (self.prompt is None) == bool(self.messages), (
            "a request has messages, or a prompt to continue"
        )
        for message in self.messages:
            assert isinstance(message["role"], str), "a role is text"
            assert isinstance(message["content"], str), "content is text"
        assert not isinstance(self.stop, str), "stop is a sequence of strings"

    @cached_property
    def key(self) -> str:
        """SHA-256 of what decides the reply: `request_key` without an identity."""
        return _digest(request_to_json(self))


@dataclass(frozen=True)
class Completion:
    """One reply. `finish_reason` is "stop", or "length" where `max_tokens` cut it; a server may
    have words of its own.

    `token_ids` and `token_logps` are those of a continued prompt, where they were asked for and the
    server gives them. `cached`: no request was sent for this one (from the cache, or shared with an
    identical request in flight). `attempts`: requests that it took, retries included. `latency_s`:
    from sending to the whole reply, retries included.
    """

    text: str
    reasoning: str | None = None
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    latency_s: float = 0.0
    attempts: int = 1
    token_ids: Sequence[int] | None = None
    token_logps: Sequence[float] | None = None

    @property
    def truncated(self) -> bool:
        """True where the reply ends because there was no more room."""
        return self.finish_reason == "length"


class LLMError(EndpointError):
    """A request that got no usable reply.

    `kind`: "fatal" (the server refuses: key, model, parameters), "content_filter" and
    "context_length" (this request alone is at fault: see `data_failure`), "unavailable" (no answer,
    or 408, 409, 429, 5xx, after all retries), "bad_reply" (an answer that is not a reply), "budget"
    (not sent). `status`: the HTTP status, where there was one. `attempts`: how often it was sent.
    `retryable`: asking again later may help.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        problems: Sequence[Problem] = (),
        *,
        kind: Kind = "fatal",
        status: int | None = None,
        attempts: int = 1,
    ) -> None:
        super().__init__(message, hint, problems)
        self.kind: Kind = kind
        self.status = status
        self.attempts = attempts

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind in ("unavailable", "bad_reply")

    @property
    def data_failure(self) -> bool:
        """Whether the request itself cannot be answered: a builder drops the row, counts it and
        continues."""
        return self.kind in DATA_FAILURES


class LLMClient(Protocol):
    """Whoever answers requests: a backend, a wrapper around one, or the whole that `open_client`
    gives."""

    async def chat(self, request: ChatRequest) -> Completion:
        """Answer one request. Raises: LLMError; EndpointError when no further request makes
        sense."""
        ...

    async def complete(self, prompt: str | tuple[int, ...], **params: Any) -> Completion:
        """Continue a text, or token ids, as it stands, without a chat template. `params` are fields
        of `ChatRequest`."""
        ...

    def capabilities(self) -> frozenset[str]:
        """What this one can do, of "chat", "complete", "seed" and "schema" (replies as JSON by a
        schema; a server may still refuse it)."""
        ...

    async def aclose(self) -> None:
        """Give connections, files and threads back."""
        ...


class Backend:
    """Base of what answers by itself: `complete` is a request with a `prompt`."""

    async def chat(self, request: ChatRequest) -> Completion:
        """Answer one request."""
        raise NotImplementedError

    async def complete(self, prompt: str | tuple[int, ...], **params: Any) -> Completion:
        """Continue a text, or token ids, as it stands, without a chat template."""
        return await self.chat(ChatRequest(prompt=prompt, **params))

    def capabilities(self) -> frozenset[str]:
        """What this one can do."""
        return frozenset({"chat", "complete"})

    async def aclose(self) -> None:
        """Nothing to give back."""


class Wrapper(Backend):
    """Base of what passes requests on to `inner`, and is closed with it."""

    def __init__(self, inner: LLMClient) -> None:
        self.inner = inner

    def capabilities(self) -> frozenset[str]:
        """What the inner one can do."""
        return self.inner.capabilities()

    async def aclose(self) -> None:
        """Close the inner one."""
        await self.inner.aclose()


KEY_FIELDS = tuple(item.name for item in fields(ChatRequest) if item.name not in NOT_IN_KEY)
COMPLETION_FIELDS = tuple(item.name for item in fields(Completion))
CANONICAL = json.JSONEncoder(
    sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False
)


def request_to_json(request: ChatRequest) -> dict[str, Any]:
    """Return what decides the reply, as plain JSON: everything but the purpose."""
    values = {name: getattr(request, name) for name in KEY_FIELDS}
    values["messages"] = [dict(message) for message in request.messages]
    values["extra"] = dict(request.extra)
    return values


def request_key(request: ChatRequest, identity: str = "") -> str:
    """Return the SHA-256 of the canonical JSON of a request.

    `identity` tells models of one name apart (a folder whose weights were trained further); empty
    for a server's.
    """
    return _digest(request_to_json(request) | {"identity": identity}) if identity else request.key


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(CANONICAL.encode(values).encode()).hexdigest()


def completion_to_json(completion: Completion) -> dict[str, Any]:
    """Return a completion as plain JSON; what belongs to token ids only where there are any."""
    values = {name: getattr(completion, name) for name in COMPLETION_FIELDS}
    for key in ("token_ids", "token_logps"):
        if values[key] is None:
            del values[key]
    return values


def sample_seed(request: ChatRequest) -> int | None:
    """Return the seed for this sample of the question, so that several samples with one seed
    differ; None without one.

    Sample 0 has the seed as given; the others a number in [0, 2**31) derived from seed and index.
    """
    if request.seed is None or request.sample_index == 0:
        return request.seed
    digest = hashlib.sha256(f"{request.seed}:{request.sample_index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has, for rate limits and for servers that do not say:
    four bytes each."""
    return -(-len(text.encode(errors="replace")) // 4)


def prompt_text(request: ChatRequest) -> str:
    """Return all that is sent, as one text, to measure it; four letters for a token id."""
    if isinstance(request.prompt, tuple):
        return "0000" * len(request.prompt)
    return (
        request.prompt
        if request.prompt is not None
        else "\n".join(m["content"] for m in request.messages)
    )


def name_of(request: ChatRequest) -> str:
    """Return a request's first words, to name it in a message."""
    text = request.messages[-1]["content"] if request.prompt is None else str(request.prompt)
    words = text if len(text) <= 60 else text[:60] + "..."
    sample = f", sample {request.sample_index}" if request.sample_index else ""
    purpose = f" for {request.purpose}" if request.purpose else ""
    return f"the request{purpose} {words!r}{sample}"
