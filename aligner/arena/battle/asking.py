"""Ask a contestant behind an endpoint for its answers; every reply is kept in the run's cache, so
nothing is asked twice.

A request that the server refuses for itself alone (a content filter, a prompt that is too long) has
no answer, and why is said. A server that stays away, and a spent budget, end the asking, with what
was answered kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.arena.battle.sheets import Prompt
from aligner.arena.battle.spend import Spend, in_words
from aligner.config.recipe import Endpoint
from aligner.data.rows import as_turns
from aligner.endpoints.client import Client, open_client
from aligner.endpoints.request import ChatRequest, LLMError
from aligner.errors import EndpointError
from aligner.events import OnEvent, StageProgress, tell

FAILURES_IN_A_ROW = 3
"""Requests without a reply after all retries, one after the other, before no more are sent."""

REFUSED = {
    "content_filter": "the server's content filter refused it",
    "context_length": "the prompt is too long for the server",
}


@dataclass(frozen=True, slots=True)
class ServerReply:
    """The answer to a prompt; `missing` says why there is none."""

    text: str
    is_cut: bool = False
    missing: str = ""


def ask_endpoint(
    name: str,
    section: Endpoint,
    prompts: Sequence[Prompt],
    settings: Mapping[str, Any],
    *,
    cache: Path,
    sample_index: int = 0,
    spend: Spend | None = None,
    on_event: OnEvent | None = None,
) -> list[ServerReply]:
    """Return the answer to each prompt. `settings`: `temperature`, `top_p`, `max_new_tokens` and
    `seed`. `sample_index`: which of several contestants with this model it is.

    Raises: EndpointError after everything that could be answered has been, when the budget is spent
    or the server refuses or stays away.
    """
    requests = [_request(prompt, settings, sample_index) for prompt in prompts]
    return asyncio.run(_ask_all(name, section, requests, cache, spend, on_event))


def _request(prompt: Prompt, settings: Mapping[str, Any], sample_index: int) -> ChatRequest:
    turns = as_turns(prompt, "user")
    return ChatRequest(
        messages=tuple({"role": turn["role"], "content": turn["content"]} for turn in turns),
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        max_tokens=settings["max_new_tokens"],
        seed=settings["seed"] if settings["temperature"] else None,
        sample_index=sample_index,
        purpose="answer",
    )


async def _ask_all(
    name: str,
    section: Endpoint,
    requests: Sequence[ChatRequest],
    cache: Path,
    spend: Spend | None,
    on_event: OnEvent | None,
) -> list[ServerReply]:
    account = f"answers of {name}"
    async with open_client(section, cache=cache, run=account, keep_truncated=True) as client:
        work = _Round(client, account, len(requests), section.max_in_flight, on_event)
        try:
            found = await asyncio.gather(*(work.ask(request) for request in requests))
        finally:
            if spend is not None:
                spend.add(account, client.usage.to_json())
    failures = [one for one in found if isinstance(one, EndpointError)]
    if failures:
        worst = min(failures, key=lambda error: isinstance(error, LLMError) and error.retryable)
        answered = len(found) - len(failures)
        raise EndpointError(
            f"{name}: {worst.message} ({answered:,} of {len(found):,} prompts are answered)",
            worst.hint or "continue with --resume: only what is missing is asked",
        ) from worst
    return [one for one in found if isinstance(one, ServerReply)]


@dataclass
class _Round:
    """The requests of one contestant."""

    client: Client
    account: str
    total: int
    most: int
    on_event: OnEvent | None
    done: int = 0
    failures: int = 0
    stopped: EndpointError | None = None

    def __post_init__(self) -> None:
        self._gate = asyncio.Semaphore(self.most)

    async def ask(self, request: ChatRequest) -> ServerReply | EndpointError:
        async with self._gate:
            if self.stopped is not None:
                return self.stopped
            try:
                reply = await self.client.chat(request)
            except LLMError as error:
                if not error.data_failure:
                    return self._failed(error)
                self.failures = 0
                return ServerReply("", missing=REFUSED[error.kind])
            except EndpointError as error:
                self.stopped = error
                return error
            self.failures = 0
            self.done += 1
            text = in_words(self.client.usage.to_json())
            tell(self.on_event, StageProgress(self.account, self.done, self.total, text))
            return ServerReply(reply.text, reply.truncated)

    def _failed(self, error: LLMError) -> EndpointError:
        self.failures += 1
        if not error.retryable or self.failures >= FAILURES_IN_A_ROW:
            self.stopped = error
        return error
