"""From the `endpoint` section of a recipe to a client that is ready for requests.

The parts stand around each other, from the outside in:

    Usage         counts what was asked and what it cost
    RecordBackend writes it down, with `record`
    Coalesce      identical requests in flight share one
    Cache         what was answered before is not asked again
    RateLimit     requests in flight, requests and tokens a minute
    Guard         budget, and a server that refuses everything
    backend       `openai` (which owns all retries), a local model, a script or a recording

Coalesce stands around the cache, so that no identical request slips through between the end of one
and its place in the cache. The budget is nearest to the server, so that only what is really sent is
counted. With a batch API there is no RateLimit: requests are collected into files, and the server
carries those out as it likes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

from aligner.config.recipe import Endpoint, Model
from aligner.endpoints.api_keys import read_secret
from aligner.endpoints.batch import PRICE, BatchBackend, Batching
from aligner.endpoints.batch_server import BatchServer
from aligner.endpoints.budget import Guard, Prices, Spent
from aligner.endpoints.cache import Cache, GroupCommit
from aligner.endpoints.coalesce import Coalesce
from aligner.endpoints.local import load_local
from aligner.endpoints.openai_backend import OpenAIBackend, check_installed
from aligner.endpoints.rate_limit import Clock, RateLimit, Sleep, Throttle
from aligner.endpoints.recording import RecordBackend, ReplayBackend
from aligner.endpoints.request import ChatRequest, Completion, LLMClient, Wrapper
from aligner.endpoints.scripted import ScriptedBackend, read_script
from aligner.endpoints.store import Store
from aligner.endpoints.usage import Usage
from aligner.errors import RecipeError
from aligner.models.files import check_model_path

OPENAI_URL = "https://api.openai.com/v1"
SCRIPT_NAME = "script"


@dataclass(frozen=True)
class Defaults:
    """What a request gets where it says nothing itself."""

    model: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 2048
    extra: Mapping[str, Any] = field(default_factory=dict)

    def fill(self, request: ChatRequest) -> ChatRequest:
        """Return the request with nothing left open."""
        return replace(
            request,
            model=request.model or self.model,
            temperature=self.temperature if request.temperature is None else request.temperature,
            top_p=self.top_p if request.top_p is None else request.top_p,
            max_tokens=self.max_tokens if request.max_tokens is None else request.max_tokens,
            extra={**self.extra, **request.extra},
        )


class Client(Wrapper):
    """What `open_client` gives: fills requests in and passes them through `usage`, whose accounts
    can be read.

    Used as `async with open_client(...) as client:`, which closes it.
    """

    def __init__(self, usage: Usage, defaults: Defaults, spent: Spent) -> None:
        super().__init__(usage)
        self.usage = usage
        self.defaults = defaults
        self.spent = spent

    async def chat(self, request: ChatRequest) -> Completion:
        """Answer one request.

        Raises: LLMError by kind (see there); EndpointError when no further request makes sense.
        """
        return await self.inner.chat(self.defaults.fill(request))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def open_client(
    section: Endpoint,
    *,
    cache: Path | None = None,
    run: str = "",
    keep_truncated: bool = False,
    spent: Spent | None = None,
    batch: Batching | None = None,
    backend: LLMClient | None = None,
    clock: Clock = time.monotonic,
    sleep: Sleep = asyncio.sleep,
) -> Client:
    """Build the client that a recipe's endpoint describes. Sends nothing; loads the model of a
    `local` one.

    `cache`: the SQLite file of replies. `run`: under this name the accounts of the budget are kept
    in it, and continued after a resume; `spent` gives them instead. `keep_truncated`: a reply that
    was cut is kept there too, for a builder that drops it and must not pay for it again after a
    resume. `batch`: requests are sent through the server's batch API; without a limit of requests
    in flight or a minute, at half the prices. `backend` takes the place of the section's own.

    Raises: RecipeError or UsageError when the section cannot be used, DataError for a script that
    is broken.
    """
    _check_section(section)
    throttle = Throttle(clock)
    store = None
    if cache is not None and section.replay is None:
        store = Store(cache, run, keep_truncated=keep_truncated)
    try:
        spent = spent if spent is not None else store.spent() if store is not None else Spent()
        source, identity = (
            (backend, "") if backend is not None else _backend(section, spent, throttle)
        )
        if batch is not None and backend is None:
            source = _batched(section, batch, source, store, sleep)
        return _compose(section, source, identity, store, spent, throttle, clock, sleep)
    except BaseException:
        if store is not None:
            store.close()
        raise


def check_endpoint(section: Endpoint) -> None:
    """Say what is missing, before any work that the first request would come after. Asks nobody and
    loads no library.

    Raises: RecipeError, UsageError or DataError, as `open_client` would.
    """
    _check_section(section)
    if section.replay is not None:
        ReplayBackend(Path(section.replay))
    elif section.backend == "scripted":
        read_script(Path(str(section.script)))
    elif section.backend == "local":
        check_model_path(Model(name_or_path=section.model), "endpoint.model")
    else:
        read_secret(section.base_url or OPENAI_URL, section.api_key_env)
        check_installed()


def _check_section(section: Endpoint) -> None:
    prices = (section.usd_per_million_prompt_tokens, section.usd_per_million_completion_tokens)
    if section.budget.usd is not None and not any(prices):
        raise RecipeError(
            "endpoint: budget.usd can never be reached without prices",
            "set usd_per_million_prompt_tokens and usd_per_million_completion_tokens, or limit "
            "budget.tokens",
        )
    if section.replay is not None:
        return
    if section.backend == "scripted" and section.script is None:
        raise RecipeError(
            "endpoint: backend `scripted` needs script", "name a JSONL file of replies"
        )
    if section.backend != "scripted" and not section.model:
        what = (
            "the name of the model on the server"
            if section.backend == "openai"
            else "a hub id or a folder"
        )
        raise RecipeError(f"endpoint: backend `{section.backend}` needs model", f"set it to {what}")


def _backend(section: Endpoint, spent: Spent, throttle: Throttle) -> tuple[LLMClient, str]:
    """Return what answers, and what tells models of one name apart in the cache."""
    if section.replay is not None:
        return ReplayBackend(Path(section.replay)), ""
    if section.backend == "scripted":
        assert section.script is not None, "_check_section has looked"
        replies = read_script(Path(section.script))
        return ScriptedBackend(replies, start=spent.replies), sha256(
            repr(replies).encode()
        ).hexdigest()
    if section.backend == "local":
        from aligner.models.fingerprint import model_fingerprint

        model = Model(name_or_path=section.model)
        return load_local(model, batch_size=section.max_in_flight), model_fingerprint(model)
    base_url = section.base_url or OPENAI_URL
    server = OpenAIBackend(
        base_url,
        read_secret(base_url, section.api_key_env),
        timeout_s=section.timeout_s,
        max_retries=section.max_retries,
        connections=section.max_in_flight,
        on_throttle=throttle.slow_down,
    )
    return server, ""


def _batched(
    section: Endpoint, batch: Batching, direct: LLMClient, store: Store | None, sleep: Sleep
) -> LLMClient:
    """Return what sends requests in batches. A recording has their replies already."""
    if section.replay is not None:
        return direct
    if section.backend != "openai":
        raise RecipeError(
            f"endpoint: backend `{section.backend}` has no batch API",
            "name a server that has one, or send the requests one by one",
        )
    base_url = section.base_url or OPENAI_URL
    server = BatchServer(
        base_url,
        read_secret(base_url, section.api_key_env),
        timeout_s=section.timeout_s,
        max_retries=section.max_retries,
        sleep=sleep,
    )
    on_submit = store.write if store is not None else None
    return BatchBackend(server, direct, batch, on_submit=on_submit, sleep=sleep)


def _compose(
    section: Endpoint,
    backend: LLMClient,
    identity: str,
    store: Store | None,
    spent: Spent,
    throttle: Throttle,
    clock: Clock,
    sleep: Sleep,
) -> Client:
    price = PRICE if isinstance(backend, BatchBackend) else 1.0
    prices = Prices(
        section.usd_per_million_prompt_tokens * price,
        section.usd_per_million_completion_tokens * price,
    )
    group = GroupCommit(store) if store is not None else None
    client: LLMClient
    if isinstance(backend, BatchBackend):
        submitted = backend.is_submitted
        client = Guard(
            backend, section.budget, prices, spent=spent, is_submitted=submitted, clock=clock
        )
    else:
        on_call = group.add_call if group is not None else None
        guard = Guard(backend, section.budget, prices, spent=spent, on_call=on_call, clock=clock)
        client = RateLimit(
            guard,
            max_in_flight=section.max_in_flight,
            requests_per_minute=section.requests_per_minute,
            tokens_per_minute=section.tokens_per_minute,
            throttle=throttle,
            check=guard.check,
            clock=clock,
            sleep=sleep,
        )
    if store is not None and group is not None:
        client = Cache(client, store, group, identity)
    client = Coalesce(client)
    if section.record is not None:
        client = RecordBackend(client, Path(section.record))
    model = section.model or SCRIPT_NAME
    defaults = Defaults(
        model, section.temperature, section.top_p, section.max_tokens, section.extra
    )
    return Client(Usage(client, prices), defaults, spent)
