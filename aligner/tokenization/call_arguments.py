"""Arguments of tool calls in the form that a chat template writes right: as an object, or as JSON
text.

Most templates want the object and write it out in a form of their own; given text, they encode it a
second time or raise. A few (DeepSeek-V3) put the arguments behind one another as text and raise on
an object, or would write Python in place of JSON. Nothing but a rendering tells them apart, so a
call is rendered both ways, once for each template.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aligner.data.rows import Messages
from aligner.tokenization.template_limits import REFUSALS, apply_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY, VALUE = "probe_key", "probe value"
AS_JSON = json.dumps({KEY: VALUE})
AS_PYTHON = repr({KEY: VALUE})

_WANTS_TEXT: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()
"""Tokenizer -> template -> whether it wants the arguments as text."""


def with_fitting_arguments(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Messages:
    """Return messages whose calls hold their arguments in the form that the template of the
    tokenizer wants."""
    if not any(message.get("tool_calls") for message in messages) or not wants_text(tokenizer):
        return messages
    return [_as_text(message) if message.get("tool_calls") else message for message in messages]


def wants_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether the template writes a call right only if its arguments are JSON text."""
    known = _WANTS_TEXT.setdefault(tokenizer, {})
    template = str(tokenizer.chat_template)
    if template not in known:
        written = _rendered(tokenizer, {KEY: VALUE})
        is_right = written is not None and VALUE in written and AS_PYTHON not in written
        known[template] = not is_right and AS_JSON in (_rendered(tokenizer, AS_JSON) or "")
    return known[template]


def _rendered(tokenizer: PreTrainedTokenizerBase, arguments: Any) -> str | None:
    from jinja2 import TemplateError

    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "probe", "arguments": arguments},
    }
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        return str(apply_template(tokenizer, turns, tokenize=False))
    except (*REFUSALS, TemplateError):
        return None  # the row's own rendering tells why, in the template's words


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "tool_calls": [_call_as_text(call) for call in message["tool_calls"]]}


def _call_as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or isinstance(function.get("arguments", ""), str):
        return call
    return {
        **call,
        "function": {
            **function,
            "arguments": json.dumps(function["arguments"], ensure_ascii=False),
        },
    }
