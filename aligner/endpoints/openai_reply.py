"""From the body of a reply to a `Completion`: what counts as an answer of an OpenAI-compatible
server, and what does not.

An empty answer is an answer (text ""): whether it is one worth keeping is for whoever asked. A
filtered or refused one is a data failure; one without any `choices`, or with something else than
text in it, is not a reply.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aligner.endpoints.api_keys import Secret
from aligner.endpoints.request import (
    ChatRequest,
    Completion,
    LLMError,
    estimated_tokens,
    name_of,
    prompt_text,
)

FILTERED = "the server's content filter"


class BadReply(Exception):
    """A body with status 200 that holds no answer; the text says why."""


def read_object(content: str) -> Mapping[str, Any]:
    """Return the body as an object with at least one choice. Raises: BadReply."""
    try:
        body: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise BadReply(f"the reply is not JSON, or was cut off: {_shown(content)}") from None
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadReply(f"the reply has no choices: {_shown(content)}")
    return dict(body)


def completion_of(
    body: Mapping[str, Any], request: ChatRequest, secret: Secret, attempts: int, latency_s: float
) -> Completion:
    """Return the first choice as a completion.

    Raises: LLMError("content_filter") for a filtered or refused answer; BadReply for one that is
    not text.
    """
    choice = body["choices"][0]
    finish_reason = choice.get("finish_reason") or "stop"
    text, reasoning = _texts(choice, request)
    if finish_reason == "content_filter":
        raise LLMError(f"{FILTERED} refused {name_of(request)}", kind="content_filter", status=200)
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Completion(
        text=_whole_letters(secret.strike_from_reply(text)),
        reasoning=None
        if reasoning is None
        else _whole_letters(secret.strike_from_reply(reasoning)),
        finish_reason=str(finish_reason),
        prompt_tokens=_count(usage.get("prompt_tokens"), prompt_text(request)),
        completion_tokens=_count(usage.get("completion_tokens"), text + (reasoning or "")),
        latency_s=latency_s,
        attempts=attempts,
        **({} if request.prompt is None else _tokens(choice)),
    )


def _tokens(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a choice says of its tokens, in the forms that vLLM has for it; {} for nothing.

    Ids stand in `token_ids` (`return_token_ids`), or in the names of the tokens
    (`return_tokens_as_token_ids`).
    """
    said = choice.get("logprobs")
    said = said if isinstance(said, dict) else {}
    ids, logps = choice.get("token_ids"), said.get("token_logprobs")
    if ids is None and all(str(name).startswith("token_id:") for name in said.get("tokens") or "-"):
        ids = [int(name.removeprefix("token_id:")) for name in said["tokens"]]
    found: dict[str, Any] = {}
    if isinstance(ids, list) and all(type(one) is int for one in ids):
        found["token_ids"] = ids
    if isinstance(logps, list) and all(type(one) in (int, float) for one in logps):
        found["token_logps"] = logps
    return found


def _texts(choice: Mapping[str, Any], request: ChatRequest) -> tuple[str, str | None]:
    """Return (answer, reasoning or None). `null` and a missing text are an empty one."""
    if request.prompt is not None:
        text, reasoning = choice.get("text"), None
    else:
        message = choice.get("message")
        if not isinstance(message, dict):
            raise BadReply("the reply has a choice without a message")
        if message.get("refusal"):
            raise LLMError(
                f"the model refused {name_of(request)}", kind="content_filter", status=200
            )
        if message.get("tool_calls"):
            raise BadReply("the reply calls a tool, and none was offered")
        text, reasoning = (
            message.get("content"),
            message.get("reasoning_content") or message.get("reasoning"),
        )
    if not isinstance(text, str | None) or not isinstance(reasoning, str | None):
        raise BadReply(f"the reply holds a {type(text).__name__} where text belongs")
    return text or "", reasoning


def _count(value: Any, text: str) -> int:
    """Return the server's count of tokens, or an estimate where it gives none."""
    return value if isinstance(value, int) and value >= 0 else estimated_tokens(text)


def _whole_letters(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can spell and no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _shown(content: str) -> str:
    return repr(content) if len(content) <= 120 else repr(content[:120]) + "..."
