"""Checks of text and of conversations: what comes out is safe for a chat template and a tokenizer.

Refused here is only what no template can make sense of: unknown roles, turns without text, images,
half surrogate pairs, a conversation in which the assistant speaks first or not last. Whether a
template wants strict alternation or takes a system turn is the template's affair.
"""

from __future__ import annotations

from typing import Any

from aligner.data.checks import BadRow, kind, text
from aligner.data.rows import Messages
from aligner.data.strict_json import RepeatedKey, decode
from aligner.data.tool_calls import spoken_calls, tool_call, tool_calls
from aligner.data.turn_weight import with_weight

ROLES = ("system", "developer", "user", "assistant", "tool")

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Speakers of ShareGPT-form files -> roles."""


def messages(value: Any, name: str) -> Messages:
    """A list of turns with known roles and plain text, or the reason why not."""
    value = unpacked(value)
    if not isinstance(value, list):
        raise BadRow(f"{name} is {kind(value)}, not a list of turns")
    if not value:
        raise BadRow(f"{name} is an empty list")
    return [
        turn if _is_plain(turn) else _turn(turn, f"turn {number} of {name}")
        for number, turn in enumerate(value, start=1)
    ]


def unpacked(value: Any) -> Any:
    """A list of turns that is there as JSON text, as tables without nested columns hold it; else
    the value itself."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return decode(value)
    except RepeatedKey as error:
        raise BadRow(f"in a conversation as JSON text, {error}") from None
    except (ValueError, RecursionError):
        return value


def _is_plain(turn: Any) -> bool:
    """Whether a turn needs no second look; most of a large file does not."""
    if type(turn) is not dict or len(turn) != 2 or turn.get("role") not in ROLES:
        return False
    content = turn.get("content")
    return type(content) is str and content.isascii() and content != "" and not content.isspace()


def _turn(turn: Any, name: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise BadRow(f"{name} is {kind(turn)}, not an object with `role` and `content`")
    role = "tool" if turn.get("role") == "function" else turn.get("role")
    if role not in ROLES:
        if role is None and "from" in turn:
            raise BadRow(
                f"{name} is in ShareGPT form (`from`, `value`); its column is `conversations`"
            )
        raise BadRow(f"{name} has the role {role!r}; known are {', '.join(ROLES)}")
    kept = {key: item for key, item in turn.items() if item is not None}
    kept = with_weight({**kept, "role": role}, name)
    calls, call = kept.pop("tool_calls", None), kept.pop("function_call", None)
    if call is not None:  # the one call of OpenAI's older form
        if calls:
            raise BadRow(f"{name} has both `tool_calls` and `function_call`")
        calls = [tool_call(call, name)]
    elif calls is not None:
        calls = tool_calls(calls, name)
    if calls:
        kept["tool_calls"] = calls
    kept["content"] = _content(turn.get("content"), f"{name} ({role})", optional=bool(calls))
    return kept


def _content(value: Any, name: str, *, optional: bool) -> str:
    if isinstance(value, list):
        value = "".join(_block(block, name) for block in value)
    if value is None and optional:
        return ""
    return text(value, name, allow_empty=optional or name.endswith(("(system)", "(tool)")))


def _block(block: Any, name: str) -> str:
    """One block of OpenAI's list form of a turn's content."""
    if isinstance(block, str):
        return block
    if not isinstance(block, dict):
        raise BadRow(f"{name} holds a block that is {kind(block)}")
    if block.get("type") not in ("text", "input_text", "output_text"):
        raise BadRow(
            f"{name} holds a block of type {block.get('type')!r}; only text can be trained on"
        )
    return text(block.get("text"), name, allow_empty=True)


def sharegpt(value: Any, name: str) -> Messages:
    """Turns with `from` and `value` as messages."""
    value = unpacked(value)
    if not isinstance(value, list):
        raise BadRow(f"{name} is {kind(value)}, not a list of turns")
    return messages(
        [_sharegpt_turn(turn, f"turn {number} of {name}") for number, turn in enumerate(value, 1)],
        name,
    )


def _sharegpt_turn(turn: Any, name: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise BadRow(f"{name} is {kind(turn)}, not an object with `from` and `value`")
    speaker = turn.get("from")
    if speaker not in SHAREGPT_ROLES:
        if speaker is None and "role" in turn:
            raise BadRow(
                f"{name} has `role`, not `from`; map it with `columns: {{messages: "
                f"{name.split()[-1]}}}`"
            )
        raise BadRow(f"{name} is from {speaker!r}; known are {', '.join(SHAREGPT_ROLES)}")
    rest = {key: item for key, item in turn.items() if key not in ("from", "value")}
    if speaker == "function_call":
        calls = spoken_calls(turn.get("value"), name)
        return {**rest, "role": "assistant", "content": None, "tool_calls": calls}
    return {**rest, "role": SHAREGPT_ROLES[speaker], "content": turn.get("value")}


def conversation(turns: Messages, name: str) -> Messages:
    """A conversation that can be trained on: the assistant answers somebody, and has the last
    word."""
    first = next((turn for turn in turns if turn["role"] not in ("system", "developer")), None)
    if first is None:
        raise BadRow(f"{name} holds no turn of a user")
    if first["role"] == "assistant":
        raise BadRow(f"{name} begins with the assistant: there is nothing that it answers")
    if turns[-1]["role"] != "assistant":
        raise BadRow(
            f"{name} ends with a turn of the {turns[-1]['role']}; the last turn must be the "
            "assistant's"
        )
    return turns


def question(turns: Messages, name: str) -> Messages:
    """The turns of a prompt: the next to speak is the assistant."""
    if turns[-1]["role"] == "assistant":
        raise BadRow(
            f"{name} ends with a turn of the assistant; the answer belongs in its own column"
        )
    return turns


def answer(turns: Messages, name: str) -> Messages:
    """The turns of an answer: the assistant's, with tool results between them at most."""
    for turn in turns:
        if turn["role"] not in ("assistant", "tool"):
            raise BadRow(
                f"{name} holds a turn of the {turn['role']}; an answer is the assistant's alone"
            )
    if turns[0]["role"] != "assistant" or turns[-1]["role"] != "assistant":
        raise BadRow(f"{name} must begin and end with a turn of the assistant")
    return turns
