"""What an error of the `openai` package means for whoever asked: its kind, one sentence, and what
to do.

A server's own words are quoted (shortened, without the key), since only they say what it did not
like. Which words mean "too long" or "filtered" is a table, because the protocol has a code for it
that few servers send.
"""

from __future__ import annotations

import re
from typing import Any

from aligner.endpoints.api_keys import Secret
from aligner.endpoints.openai_reply import BadReply
from aligner.endpoints.request import ChatRequest, Kind, LLMError, name_of
from aligner.errors import RecipeError

QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")

PASSING = (408, 409, 425, 429)
"""Status of what may succeed later; so may what the server has done wrong (5xx)."""

TOO_LONG = re.compile(
    r"context_length_exceeded|context[ _](length|window|size)"
    r"|maximum (model|sequence|input) length|max_model_len"
    r"|prompt is too long|too many (input )?tokens|input (is )?too long|longer than the maximum",
    re.IGNORECASE,
)
LONGEST = re.compile(
    r"(?:maximum (?:context|model) length|context (?:size|window))\D{0,20}(\d+)", re.IGNORECASE
)
FILTERED = re.compile(
    r"content_filter|content_policy|content management policy|content policy|safety system", re.I
)

RESERVED = (
    "model",
    "messages",
    "prompt",
    "temperature",
    "top_p",
    "max_tokens",
    "stop",
    "seed",
    "stream",
    "n",
)

WRONG_PARAMETER = (
    "compare model, sampling and extra of the recipe's endpoint with what this server knows"
)

HINTS = {
    400: WRONG_PARAMETER,
    401: "the key in {variable} is not accepted: check it, or name another variable with "
    "api_key_env",
    403: "the key in {variable} may not use this model, or this network may not use the server",
    404: "check base_url (it ends in /v1 as a rule) and the model's name; GET {base_url}/models "
    "lists what is served",
    422: WRONG_PARAMETER,
}


def error_of(
    error: Exception, asked: ChatRequest | str, problem: str, base_url: str, secret: Secret
) -> LLMError:
    """Return what the error means. `asked`: the request, or what else was asked for, in words.
    `problem` is what was wrong with the last reply, empty when there was none."""
    what, max_tokens = (
        (asked, 0) if isinstance(asked, str) else (name_of(asked), asked.max_tokens or 0)
    )
    if isinstance(error, BadReply) or problem:
        said = problem or str(error)
        hint = "look at what runs there: is base_url that of an OpenAI-compatible server?"
        return LLMError(
            secret.strike(f"{base_url}: no usable answer to {what}: {said}"), hint, kind="bad_reply"
        )
    status = getattr(error, "status_code", None)
    if status is None:
        return _unreachable(error, base_url, secret)
    said = _said(error, secret)
    kind, longest = _kind(status, said), LONGEST.search(said)
    if kind == "context_length" and longest is not None and max_tokens >= int(longest.group(1)):
        kind, hint = (
            "fatal",
            f"max_tokens is {max_tokens}, too much for every prompt: lower it",
        )
    elif kind == "fatal" and status == 429:
        hint = "the account has no credit left"
    elif kind == "fatal":
        hint = HINTS.get(status, "").format(variable=secret.variable, base_url=base_url)
    elif kind == "unavailable":
        hint = (
            "the retries are used up: lower requests_per_minute or max_in_flight, or try again "
            "later"
        )
    else:
        hint = ""
    return LLMError(
        secret.strike(f"{base_url} answered {status} to {what}: {said}"),
        hint,
        kind=kind,
        status=status,
    )


def _unreachable(error: Exception, base_url: str, secret: Secret) -> LLMError:
    """No status: the connection failed, or no reply came in time."""
    cause = error.__cause__ or error
    if type(error).__name__ == "APITimeoutError" and not _was_refused(error):
        what, hint = (
            "did not answer in time",
            "raise timeout_s, lower max_tokens or max_in_flight, or see the server",
        )
    else:
        what, hint = (
            "cannot be reached",
            "is the server running there? Check base_url, host and port",
        )
    reason = secret.strike(str(cause) or type(cause).__name__)
    return LLMError(f"{base_url} {what}: {reason[:300]}", hint, kind="unavailable")


def _was_refused(error: BaseException | None) -> bool:
    """Whether the system refused the connection, which the HTTP library also calls a timeout."""
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return True
        error = error.__cause__
    return False


def _kind(status: int, said: str) -> Kind:
    if status in (400, 413, 422) and TOO_LONG.search(said):
        return "context_length"
    if status in (400, 403, 422, 451) and FILTERED.search(said):
        return "content_filter"
    if status in PASSING or status >= 500:
        return "fatal" if any(code in said for code in QUOTA_CODES) else "unavailable"
    return "fatal"


def _said(error: Exception, secret: Secret) -> str:
    """Return the server's words on one line: its message and code where it has the usual form, else
    the body."""
    body: Any = getattr(error, "body", None)
    if isinstance(body, dict):
        parts = [
            str(body[key])
            for key in ("message", "detail", "code", "type")
            if body.get(key) not in (None, "")
        ]
        body = ", ".join(parts) or str(body)
    text = secret.strike(
        " ".join(str(body or "no explanation").split())
    )  # before it is cut: half a key is too much
    return text if len(text) <= 400 else text[:400] + "..."


def refuse_reserved(request: ChatRequest) -> None:
    """Raise RecipeError when `extra` holds what the endpoint has a key of its own for, or what we
    cannot read."""
    taken = [key for key in request.extra if key in RESERVED]
    if taken:
        raise RecipeError(
            f"endpoint: extra may not hold {', '.join(taken)}",
            "use the endpoint's own key for it; streams and several choices (`n`) are not read",
        )
