"""Ask a language model for the next objective: the request, the reply that is kept, and its cost.

A reply is on disk before it is read, so a search that is taken up again does not ask for it a
second time.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from aligner.endpoints.client import open_client
from aligner.endpoints.request import ChatRequest, LLMError
from aligner.endpoints.usage import added
from aligner.errors import EndpointError
from aligner.losses.dsl.language import LANGUAGE
from aligner.methods.discover.archive import Archive
from aligner.methods.discover.prompts import clean, conversation, system_prompt
from aligner.methods.discover.recipe import DiscoverRecipe
from aligner.runs.files import dumps, parse_json, write_atomically
from aligner.runs.run import Run

REPLY_FAILURES = ("content_filter", "bad_reply")
"""Kinds of endpoint failures that say something about one reply, not about the endpoint: they count
as a proposal."""
FAILURES_IN_A_ROW = 3
"""After so many of them the endpoint is to blame after all."""


class Proposer:
    """Asks the language model, one request at a time, on an event loop that runs only while it
    waits for a reply."""

    def __init__(self, recipe: DiscoverRecipe, run: Run, archive: Archive) -> None:
        self.recipe, self.run, self.archive = recipe, run, archive
        self.failures = 0
        self.before = run.read_json("usage.json") or {}
        self._loop = asyncio.new_event_loop()
        self._client = open_client(
            recipe.endpoint, cache=run.dir / "replies.sqlite", run="discover"
        )

    def ask(self, index: int) -> dict[str, Any]:
        """Return the reply to be read, with the indices of what the model saw: from disk, or from
        the model.

        A request that is too long for the model is made again with half of the conversation.

        Raises: LLMError when the budget is spent or the endpoint fails; EndpointError when it gives
        no usable answer several times in a row.
        """
        file = self.archive.place(index) / "reply.json"
        if not file.exists():
            history = min(self.recipe.discover.history, index)
            while True:
                try:
                    write_atomically(file, dumps(self._reply(index, history)))
                    break
                except LLMError as error:
                    if error.kind != "context_length" or history == 0:
                        raise
                    history //= 2
        return parse_json(file, f"delete {file}: the language model is asked again")

    def _reply(self, index: int, history: int) -> dict[str, Any]:
        settings = self.recipe.discover
        messages, parents = conversation(
            sorted(self.archive.records, key=lambda record: record.index),
            functools.partial(_said, self.archive),
            history,
            system_prompt(settings.beta, LANGUAGE),
        )
        request = ChatRequest(messages=tuple(messages), sample_index=index, purpose="propose")
        try:
            reply = self._loop.run_until_complete(self._client.chat(request))
        except LLMError as error:
            if error.kind not in REPLY_FAILURES:
                raise
            self.failures += 1
            if self.failures == FAILURES_IN_A_ROW:
                raise EndpointError(
                    f"the endpoint gave no usable answer {self.failures} times in a row; the last "
                    f"time: {error.message}",
                    error.hint
                    or "check endpoint.base_url and endpoint.model, then continue with --resume",
                ) from error
            return {
                "text": "",
                "error": f"no usable answer came from the server ({error.kind})",
                "parents": parents,
            }
        finally:
            self.run.write_json("usage.json", added(self.before, self._client.usage.to_json()))
        self.failures = 0
        cut = "the reply was cut at endpoint.max_tokens" if reply.finish_reason == "length" else ""
        return {"text": clean(reply.text), "error": cut, "parents": parents}

    def close(self) -> None:
        """End what is under way, and close the client."""
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _close(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()


def _said(archive: Archive, index: int) -> str:
    """The model's own answer; what could not be had stands as an empty object."""
    file = archive.place(index) / "reply.json"
    return parse_json(file, f"restore it, or delete {file.parent}", needed=["text"])["text"] or "{}"
