"""Record and replay: a folder of requests with their replies, written by one run and answered from
by another.

One JSON file for each request, named by its key: the request as it was asked and the reply, or the
failure that belongs to the request itself (filtered, too long, a field that the server refuses). A
request that is asked again replaces its file. The files hold prompts and replies in full, but never
a key, an address or a header.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligner.endpoints.request import (
    Backend,
    ChatRequest,
    Completion,
    LLMClient,
    LLMError,
    Wrapper,
    completion_to_json,
    name_of,
    request_key,
    request_to_json,
)
from aligner.errors import DataError, EndpointError, UsageError
from aligner.runs.files import write_atomically

REFUSALS = (400, 404, 415, 422, 501)
"""Status of a server that does not take a field of the request."""


class RecordBackend(Wrapper):
    """Writes each request that passes, with what came back, to a folder."""

    def __init__(self, inner: LLMClient, folder: Path) -> None:
        """Make the folder. Raises: UsageError when it cannot be made."""
        super().__init__(inner)
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(
                f"the recording {folder} cannot be made: {error}", "name a folder that can"
            ) from error

    async def chat(self, request: ChatRequest) -> Completion:
        """Pass on, and write down."""
        try:
            completion = await self.inner.chat(request)
        except LLMError as error:
            if error.data_failure or error.status in REFUSALS:
                failure = {"kind": error.kind, "message": error.message, "status": error.status}
                self._write(request, {"error": failure})
            raise
        self._write(request, {"completion": completion_to_json(completion)})
        return completion

    def _write(self, request: ChatRequest, outcome: dict[str, Any]) -> None:
        content = {"request": {**request_to_json(request), "purpose": request.purpose}, **outcome}
        write_atomically(
            _file_of(self.folder, request), json.dumps(content, indent=1, sort_keys=True) + "\n"
        )


class ReplayBackend(Backend):
    """Answers from a recording and nowhere else."""

    def __init__(self, folder: Path) -> None:
        """Raises: UsageError when there is no such folder."""
        if not folder.is_dir():
            raise UsageError(
                f"there is no recording {folder}",
                "record one first: `record` in the recipe's endpoint",
            )
        self.folder = folder

    def capabilities(self) -> frozenset[str]:
        """A recording answers whatever was recorded."""
        return frozenset({"chat", "complete", "seed", "schema"})

    async def chat(self, request: ChatRequest) -> Completion:
        """Give the recorded reply, or raise the recorded failure.

        Raises: EndpointError naming a request that was not recorded; DataError for a file that is
        damaged.
        """
        path = _file_of(self.folder, request)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if "error" in content:
                raise LLMError(**content["error"])
            return replace(Completion(**content["completion"]), cached=False)
        except FileNotFoundError:
            raise EndpointError(
                f"{name_of(request)} is not in the recording {self.folder}",
                "the request changed since (model, messages, sampling or seed): record it again",
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: not a recorded reply: {error}", "record it again") from error


def _file_of(folder: Path, request: ChatRequest) -> Path:
    return folder / f"{request_key(request)}.json"
