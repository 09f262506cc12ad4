"""Replies as JSON by a schema (`response_format`), where the server takes one.

Whether it does is found out by one request for each client: a question that nobody answers in JSON
unasked. A server that refuses the field, and one that takes no notice of it, count as without; the
outcome is remembered as long as the client. A refusal costs nothing, and is not kept: a resumed run
asks once more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from aligner.builders.evolve.recipe import Evolve
from aligner.data.reasoning import without_reasoning
from aligner.endpoints.recording import REFUSALS
from aligner.endpoints.request import ChatRequest, LLMClient, LLMError

Schema = Mapping[str, Any]
"""Key -> JSON schema of its value. All keys are required, and there are no others."""

TEXT: Schema = {"type": "string"}
NUMBERS: Schema = {"type": "array", "items": {"type": "integer"}}

CAPABILITY = "schema"
PROBE = "Which colour has a clear sky at noon?"
PROBE_SCHEMA = {"colour": TEXT}
PROBE_TOKENS = 512

_PROBES: WeakKeyDictionary[LLMClient, asyncio.Task[bool]] = WeakKeyDictionary()


def response_format(schema: Schema) -> dict[str, Any]:
    """Return the field of a request body that asks for an object of this schema."""
    whole = {
        "type": "object",
        "properties": dict(schema),
        "required": list(schema),
        "additionalProperties": False,
    }
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": whole},
        }
    }


def read_object(text: str, schema: Schema) -> dict[str, Any] | None:
    """Return the object that a reply is, with the keys of the schema and values of their types;
    None for anything else, an object among other text too."""
    try:
        values = json.loads(without_reasoning(text))
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or set(values) != set(schema):
        return None
    return values if all(_is_of(values[key], schema[key]) for key in schema) else None


def _is_of(value: Any, kind: Any) -> bool:
    if kind == TEXT:
        return isinstance(value, str)
    return isinstance(value, list) and all(type(item) is int for item in value)


async def takes_schemas(client: LLMClient, settings: Evolve) -> bool:
    """Say whether this client's replies can be had as JSON, and may be; asks it once.

    Raises: LLMError for what is wrong with any request: a key that is not accepted, a server that
    is not there, a budget that is spent.
    """
    if settings.structured == "never" or CAPABILITY not in client.capabilities():
        return False
    probe = _PROBES.get(client)
    if probe is None:
        probe = _PROBES[client] = asyncio.create_task(_probe(client))
    try:
        return await asyncio.shield(probe)
    except BaseException:
        if _PROBES.get(client) is probe and (probe.cancelled() or probe.done()):
            del _PROBES[client]
        raise


async def _probe(client: LLMClient) -> bool:
    request = ChatRequest(
        messages=({"role": "user", "content": PROBE},),
        temperature=0.0,
        max_tokens=PROBE_TOKENS,
        purpose="probe",
        extra=response_format(PROBE_SCHEMA),
        urgent=True,
    )
    try:
        completion = await client.chat(request)
    except LLMError as error:
        if error.kind == "fatal" and error.status in REFUSALS:
            return False
        raise
    return read_object(completion.text, PROBE_SCHEMA) is not None
