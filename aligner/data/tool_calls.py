"""Tool calls in a turn, brought into one form: `{"type": "function", "function": {"name",
"arguments"}}`.

The arguments become an object. OpenAI's wire form has them as JSON text, which some templates would
encode a second time and others refuse; which of the two a template wants is for
`aligner.tokenization.chat_template` to find out. What is not a call raises `BadRow` with the turn
and the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.data.checks import BadRow, kind, text
from aligner.data.strict_json import RepeatedKey, decode


def tool_calls(value: Any, name: str) -> list[dict[str, Any]]:
    """The calls of the turn called `name`, from a list or JSON text of one."""
    calls = _parsed(value) if isinstance(value, str) else value
    if not isinstance(calls, list):
        raise BadRow(f"tool_calls of {name} is {kind(value)}, not a list of calls")
    return _each(calls, name)


def spoken_calls(value: Any, name: str) -> list[dict[str, Any]]:
    """The calls that a turn of `function_call` speaks: one, or a list of them, as JSON or as text
    of it."""
    said = _parsed(value) if isinstance(value, str) else value
    return _each(said if isinstance(said, list) and said else [value], name)


def _each(calls: list[Any], name: str) -> list[dict[str, Any]]:
    places = (
        [name]
        if len(calls) == 1
        else [f"call {place} of {name}" for place in range(1, len(calls) + 1)]
    )
    return [tool_call(call, where) for call, where in zip(calls, places)]


def tool_call(value: Any, where: str) -> dict[str, Any]:
    """One call: the object itself, its `function` alone, or JSON text of either."""
    call = _parsed(value) if isinstance(value, str) else value
    if not isinstance(call, Mapping):
        raise BadRow(
            f"{where} is a function call that is not a JSON object with `name` and `arguments`"
        )
    asked = call.get("type", "function")
    if asked not in ("function", None):
        raise BadRow(
            f"{where} is a tool call of the type {asked!r}; only calls of functions can be "
            "trained on"
        )
    function = call.get("function", call)
    if isinstance(function, str):  # the name alone, with the arguments beside it
        function = {"name": function, "arguments": call.get("arguments")}
    if not isinstance(function, Mapping):
        raise BadRow(f"{where} is a tool call whose `function` is {kind(function)}, not an object")
    if function.get("name") is None:
        raise BadRow(f"{where} is a tool call without the `name` of a function")
    name = text(function["name"], f"the name of the function that {where} calls")
    made = {"name": name, "arguments": _arguments(function, where)}
    known = {"id": call["id"]} if call.get("id") is not None else {}
    return {**known, "type": "function", "function": made}


def _arguments(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments as an object, parsed once if they are JSON text."""
    given = function.get("arguments", function.get("parameters"))
    if given is None or given == "":
        return {}
    called = f"the arguments of `{function['name']}` in {where}"
    if isinstance(given, str):
        parsed = _parsed(given)
        if isinstance(parsed, str):
            raise BadRow(f"{called} are text that holds JSON text: they were encoded twice")
        if parsed is None:
            raise BadRow(f"{called} are text that is not JSON: {given[:60]!r}")
        given = parsed
    if not isinstance(given, Mapping):
        raise BadRow(f"{called} are {kind(given)}, not an object")
    return dict(given)


def _parsed(value: str) -> Any:
    """The value of JSON text; None where it is not JSON, or null."""
    try:
        return decode(value)
    except RepeatedKey as error:
        raise BadRow(f"in the text of a call, {error}") from None
    except (ValueError, RecursionError):
        return None
