"""The typed rows that everything downstream works on, whatever file and form they came from.

A row holds text and roles, never token ids. `origin` names the file and the 1-based row it came
from ("data/pairs.jsonl:17"; a line number for line-based files), so that a later complaint can
still point at it. A plain string stays a plain string: whether the chat template goes around it is
decided where text becomes ids. When a prompt is a list of messages, so are the answers to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

from aligner.errors import DataError

Task = Literal["sft", "preference", "prompts"]

LARGEST_NUMBER = 1e6
"""Largest weight, strength or rating of a row: beyond, losses leave what float32 holds."""

Messages = list[dict[str, Any]]
"""`[{"role": "user", "content": "..."}, ...]`; further keys (`tool_calls`, `name`, ...) are kept as
they came."""

SAMPLED = "pair_token_ids"
"""Column of a pair: the token ids of both answers as a model sampled them, stop ids included."""

VARIABLES = "chat_template_kwargs"
"""Column of rows with answers, in TRL's name: values of variables of the chat template."""

WEIGHT = "weight"
"""Key of a turn: 0 where the row says that it is not to be trained. See
`aligner.data.turn_weight`."""


@dataclass(frozen=True, slots=True)
class ConversationRow:
    """A whole conversation, trained on the assistant's turns."""

    messages: Messages
    tools: list[Any] | None = None
    origin: str = ""
    group: str = ""
    """Value of the column that mosaics are grouped by."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further columns that were asked for (`keep` of `load_rows`), as they came."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Values of variables of the chat template, such as `enable_thinking`."""


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A prompt and the answer to it."""

    prompt: str | Messages
    completion: str | Messages
    origin: str = ""
    group: str = ""
    """Value of the column that mosaics are grouped by."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further columns that were asked for (`keep` of `load_rows`), as they came."""
    tools: list[Any] | None = None
    """Descriptions of the tools that may be called, as the chat template takes them."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Values of variables of the chat template, such as `enable_thinking`."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """Plain text, trained on whole."""

    text: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A prompt with a better and a worse answer; `weight` scales the pair's loss."""

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    weight: float = 1.0
    origin: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further columns that were asked for (`keep` of `load_rows`), as they came."""
    tools: list[Any] | None = None
    """Descriptions of the tools that may be called, as the chat template takes them."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Values of variables of the chat template, such as `enable_thinking`."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt to be answered, with the expected answer where there is one."""

    prompt: str | Messages
    answer: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    tools: list[Any] | None = None
    """Descriptions of the tools that may be called, as the chat template takes them."""


def as_turns(value: str | Messages, role: str) -> Messages:
    """Return a plain string as the one turn of a role; turns as they are."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


Row = ConversationRow | CompletionRow | TextRow | PreferenceRow | PromptRow


def prompt_text(row: Row) -> str:
    """What the user asked, as one string: rows with the same one must not stand on both sides of a
    held-out split.

    System turns do not count, and a plain prompt equals the conversation that asks the same, so
    that a question cannot leak by being written in another form. Plain text is its own prompt.
    """
    if isinstance(row, TextRow):
        return row.text.strip()
    prompt = row.messages if isinstance(row, ConversationRow) else row.prompt
    if isinstance(prompt, str):
        return prompt.strip()
    if isinstance(row, ConversationRow):
        prompt = list(takewhile(lambda turn: turn["role"] != "assistant", prompt))
    asked = [
        f"{turn['role']}: {turn['content'].strip()}"
        for turn in prompt
        if turn["role"] not in _SYSTEM
    ]
    return asked[0].removeprefix("user: ") if len(asked) == 1 else "\n".join(asked)


_SYSTEM = ("system", "developer")


def question_of(row: Row) -> tuple[str | Messages, str | None] | None:
    """Return what a row asks and the answer that it gives, as text; None for one that asks
    nothing."""
    if isinstance(row, ConversationRow):
        last = len(row.messages) - 1
        if last < 1 or row.messages[last]["role"] != "assistant":
            return None
        return row.messages[:last], _text(row.messages[last:])
    if isinstance(row, CompletionRow):
        return row.prompt, _text(row.completion)
    if isinstance(row, PreferenceRow):
        return row.prompt, _text(row.chosen)
    return (row.prompt, row.answer) if isinstance(row, PromptRow) else None


def refuse_tools(rows: Iterable[Row], reader: str) -> None:
    """Raise DataError for rows with tools or variables of a chat template, where they would be read
    by somebody who is not told of them."""
    for row in rows:
        if getattr(row, "tools", None):
            raise DataError(
                f"{row.origin} has `tools`, and {reader} is asked without them",
                "describe the tools in a system turn, or take the column out with a `function:` "
                "of yours",
            )
        if variables_of(row):
            raise DataError(
                f"{row.origin} has `{VARIABLES}`, and {reader} is asked without them",
                "say it in a system turn, or take the column out with a `function:` of yours",
            )


def variables_of(row: Row) -> dict[str, Any]:
    """Return the variables of the chat template that a row sets."""
    return getattr(row, VARIABLES, None) or {}


def _text(value: str | Messages) -> str:
    return (
        value
        if isinstance(value, str)
        else "\n".join(str(message.get("content")) for message in value)
    )
