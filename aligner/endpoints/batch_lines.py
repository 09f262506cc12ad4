"""The lines of a batch: a request as it is uploaded, and what came of it.

A result is `response` (status and body, as the server would have answered at once) or `error` (the
request was not carried out: the batch expired or was cancelled first, or the model took too long).
What is passing is worth a second attempt; all else is final, and means what it means at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from aligner.endpoints.api_keys import Secret
from aligner.endpoints.openai_errors import PASSING, QUOTA_CODES, error_of
from aligner.endpoints.openai_reply import BadReply, completion_of
from aligner.endpoints.request import ChatRequest, Completion, LLMError, name_of

CHAT, CONTINUE = "/v1/chat/completions", "/v1/completions"


class Refusal(Exception):
    """An answer in a result that is not a reply, in the form that `error_of` reads."""

    def __init__(self, status_code: int, body: Any) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        self.body = body.get("error", body) if isinstance(body, dict) else body


def request_line(key: str, endpoint: str, body: Mapping[str, Any]) -> str:
    """Return the line of a request."""
    line = {"custom_id": key, "method": "POST", "url": endpoint, "body": body}
    return json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n"


def read_results(content: str) -> Iterator[dict[str, Any]]:
    """Read a file of results. A line that is none is left out, and its request counts as not
    carried out."""
    for line in content.split("\n"):
        try:
            result = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(result, dict) and isinstance(result.get("custom_id"), str):
            yield {name: result.get(name) for name in ("custom_id", "response", "error")}


def is_final(result: Mapping[str, Any]) -> bool:
    """Say whether a second attempt could not change a result."""
    status, body = _response(result)
    if status in PASSING or status >= 500:
        return any(code in json.dumps(body) for code in QUOTA_CODES)
    return is_reply(result) if status == 200 else status > 0


def is_reply(result: Mapping[str, Any]) -> bool:
    """Say whether a result is a reply that was paid for; one that was filtered is."""
    status, body = _response(result)
    choices = body.get("choices") if status == 200 and isinstance(body, dict) else None
    return isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict)


def completion_from(
    result: Mapping[str, Any] | None,
    request: ChatRequest,
    base_url: str,
    secret: Secret,
    *,
    attempts: int,
    latency_s: float,
) -> Completion:
    """Return the reply in a result. Raises: LLMError, by kind as if it was sent at once."""
    if result is None:
        raise _not_carried_out("no result", request, base_url, attempts)
    status, body = _response(result)
    if status == 0:
        said = result.get("error")
        words = said.get("message") or said.get("code") if isinstance(said, dict) else said
        raise _not_carried_out(secret.strike(str(words)[:400]), request, base_url, attempts)
    failure: LLMError | None = None
    try:
        if status == 200 and is_final(result):
            return completion_of(body, request, secret, attempts, latency_s)
        problem: Exception = (
            BadReply(f"the reply has no choices: {str(body)[:120]!r}")
            if status == 200
            else Refusal(status, body)
        )
    except BadReply as error:
        problem = error
    failure = error_of(problem, request, "", base_url, secret)
    failure.attempts = attempts
    raise failure


def _response(result: Mapping[str, Any]) -> tuple[int, Any]:
    """Return the status and the body of a result; 0 where the request was not carried out."""
    response = result.get("response")
    if not isinstance(response, dict) or not isinstance(response.get("status_code"), int):
        return 0, None
    return response["status_code"], response.get("body")


def _not_carried_out(said: str, request: ChatRequest, base_url: str, attempts: int) -> LLMError:
    return LLMError(
        f"{base_url} did not carry out {name_of(request)}, in {attempts} batches: {said}",
        "resume later: what was answered is kept",
        kind="unavailable",
        attempts=attempts,
    )
