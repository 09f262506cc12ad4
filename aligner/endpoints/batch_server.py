"""What is asked of a server's batch API, through `openai`: upload a file of requests, make a batch
of it, look how far it is, fetch its results.

`openai` owns the retries, but for the one call that must not be repeated blindly: making a batch
costs money, and a reply that was lost does not say whether there is one. There a failure is
followed by a look at the batches that the server has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from aligner.endpoints.api_keys import Secret
from aligner.endpoints.batch_lines import read_results
from aligner.endpoints.openai_backend import CONNECT_TIMEOUT_S, check_installed
from aligner.endpoints.openai_errors import error_of
from aligner.endpoints.request import LLMError

WINDOW = "24h"  # the only one there is
LOOKED_AT = 1000  # of a server's batches, the newest first
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
UPLOAD_TIMEOUT_S = 600.0
NO_BATCHES = "not every server has a batch API: send the requests one by one"

OTHER_KEY = (
    "was it submitted with another key, or to another server? Move the folder of batches away, and "
    "its requests are submitted, and paid, once more"
)


class BatchServer:
    """The batch API of a server. Every text that leaves has the key struck out."""

    def __init__(
        self,
        base_url: str,
        secret: Secret,
        *,
        timeout_s: float,
        max_retries: int,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Raises: UsageError when the `openai` package is not installed."""
        check_installed()
        openai: Any = import_module("openai")
        self.base_url = base_url
        self.secret = secret
        self._max_retries = max_retries
        self._sleep = sleep
        self._client = openai.AsyncOpenAI(
            api_key=secret.value,
            base_url=base_url,
            timeout=openai.Timeout(max(timeout_s, UPLOAD_TIMEOUT_S), connect=CONNECT_TIMEOUT_S),
            max_retries=max_retries,
            http_client=openai.DefaultAioHttpClient(trust_env=not secret.is_local),
        )
        self._error_type: type[Exception] = openai.OpenAIError

    async def upload(self, name: str, content: bytes) -> str:
        """Upload a file of requests, and return its id."""
        create = self._client.files.create
        file = await self._call("a file of requests", create(file=(name, content), purpose="batch"))
        return str(file.id)

    async def submit(self, input_file_id: str, endpoint: str) -> Any:
        """Make a batch of an uploaded file; once, whatever becomes of the reply."""
        once = self._client.with_options(max_retries=0).batches
        pause_s = FIRST_PAUSE_S
        for attempt in range(self._max_retries + 1):
            try:
                return await self._call(
                    "a new batch",
                    once.create(
                        input_file_id=input_file_id, endpoint=endpoint, completion_window=WINDOW
                    ),
                )
            except LLMError as error:
                if not error.retryable or attempt == self._max_retries:
                    raise
            await self._sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            if (found := await self.find(input_file_id)) is not None:
                return found
        raise AssertionError("the last attempt returns or raises")

    async def find(self, input_file_id: str) -> Any | None:
        """Return the batch that was made of a file, None where there is none."""
        return await self._call("the list of batches", self._find(input_file_id), has_id=False)

    async def _find(self, input_file_id: str) -> Any | None:
        seen = 0
        async for batch in self._client.batches.list(limit=100):
            seen += 1
            if batch.input_file_id == input_file_id:
                return batch
            if seen == LOOKED_AT:
                break
        return None

    async def look(self, batch_id: str) -> Any:
        """Return a batch as it is now."""
        retrieve = self._client.batches.retrieve
        return await self._call(f"batch {batch_id}", retrieve(batch_id), if_absent=OTHER_KEY)

    async def results(self, batch: Any) -> list[dict[str, Any]]:
        """Return all results of a batch that has ended, also of one that did not get far."""
        found: list[dict[str, Any]] = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                content = await self._call(
                    "results", self._client.files.content(file_id), has_id=False
                )
                text = content.content.decode("utf-8", "replace")
                found += read_results(self.secret.strike_from_reply(text))
        return found

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _call(
        self,
        what: str,
        call: Awaitable[Any],
        *,
        has_id: bool = True,
        if_absent: str = NO_BATCHES,
    ) -> Any:
        """Raises: LLMError."""
        failure: LLMError
        try:
            reply = await call
            if not has_id or isinstance(getattr(reply, "id", None), str):
                return reply
            failure = LLMError(
                f"{self.base_url} answered with something else than {what}",
                NO_BATCHES,
                kind="bad_reply",
            )
        except self._error_type as error:
            failure = error_of(error, what, "", self.base_url, self.secret)
            if failure.status in (404, 405):
                failure.hint = if_absent
        raise failure  # out here it has no context: the original knows the key
