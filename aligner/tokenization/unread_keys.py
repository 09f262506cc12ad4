"""Count what a row says and its chat template leaves out, so that nothing is dropped silently.

A key of a turn (`reasoning_content`, `name`) is read if the conversation is another one without it.
Thinking in a text (`<think>...</think>`) is dropped where it is nowhere in the conversation.
Templates decide by what follows: the same key is read in the last turn and not in earlier ones. So
every turn is asked for itself, and only those that have something to lose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aligner.data.row_texts import conversations_of
from aligner.data.rows import (
    VARIABLES,
    WEIGHT,
    CompletionRow,
    Messages,
    Row,
    question_of,
    variables_of,
)
from aligner.data.turn_weight import without_weights
from aligner.errors import DataError
from aligner.tokenization.chat_template import PROBES, Conversation, has_template
from aligner.tokenization.template_child import Marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KNOWN = {"role", "content", "tool_call_id", WEIGHT}
"""Keys that are looked after elsewhere; an id only says which call a result belongs to."""

THOUGHT = re.compile(
    r"(?:<(think|thinking)>)?((?:(?!<think(?:ing)?>).)*?)</think(?:ing)?>", re.DOTALL
)
"""Thinking in a text, whose first tag the generation prompt may have written."""


def unread_of(
    tokenizer: PreTrainedTokenizerBase, row: Row, *, trains_all: bool = False
) -> Counter[str]:
    """Return what of a row reaches no token, and in how many turns. `trains_all`: every turn is
    trained."""
    lost: Counter[str] = Counter()
    if not has_template(tokenizer):
        return lost
    for messages, first in conversations_of(row):
        messages = without_weights(messages) if trains_all else messages
        lost += _lost(Conversation.of_row(tokenizer, messages, row), first)
    if variables := variables_of(row):
        read = _variables_of(str(tokenizer.get_chat_template()))
        lost.update(f"`{name}` of `{VARIABLES}`" for name in variables if name not in read)
    return lost


@lru_cache(maxsize=8)
def _variables_of(template: str) -> frozenset[str]:
    """Names that a template reads and does not define."""
    from jinja2 import Environment, TemplateError, meta

    environment = Environment(extensions=["jinja2.ext.loopcontrols", Marks])
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(template)))
    except TemplateError:
        return frozenset()


def unread_beside_text(row: Row, only_answer: bool = False) -> Counter[str]:
    """Return the keys of turns that are lost where only the text of turns is read, or only that of
    the answer."""
    keys = Counter[str]()
    for messages, first in conversations_of(row):
        for message in messages[len(messages) - 1 if only_answer else first :]:
            keys.update(f"`{key}`" for key in message.keys() - KNOWN)
    return keys


def as_text_answer(row: Row) -> Row:
    """Return a row as one is read whose answer is a text: everything before it, and that text."""
    found = question_of(row)
    return (
        row if found is None or found[1] is None else CompletionRow(found[0], found[1], row.origin)
    )


def _lost(chat: Conversation, first: int) -> Counter[str]:
    turns = range(first, len(chat.messages))
    asked = [turn for turn in turns if _may_lose(chat.messages[turn])]
    has_tools = chat.tools is not None and first == 0
    if not asked and not has_tools:
        return Counter()
    whole = chat.text(chat.messages)
    lost = Counter(what for turn in asked for what in _lost_in_turn(chat, whole, turn))
    if has_tools and _same(replace(chat, tools=None), chat.messages, whole):
        lost["the column `tools`"] += 1
    return lost


def _may_lose(message: dict[str, Any]) -> bool:
    if message["role"] not in ("user", "assistant") or not message.keys() <= KNOWN:
        return True
    if message["role"] == "user":
        return message.get(WEIGHT) == 1
    return "</think" in message["content"]


def _lost_in_turn(chat: Conversation, whole: str, turn: int) -> Iterator[str]:
    message = chat.messages[turn]
    if message.get(WEIGHT) == 1:  # only another's turn than the assistant's still says so
        yield f"`weight` 1 of the {message['role']} (only the assistant's turns are trained)"
    for key in message.keys() - KNOWN:
        without = {name: value for name, value in message.items() if name != key}
        if _same(chat, _replaced(chat.messages, turn, without), whole):
            yield f"`{key}`"
    if message["role"] == "assistant":
        if any(
            _same(chat, _replaced(chat.messages, turn, other), whole)
            for other in _thinking_otherwise(message)
        ):
            yield "thinking in the text"
        return
    if not message["content"].strip() or message["content"].strip() in whole:
        return
    if all(
        _same(chat, _replaced(chat.messages, turn, {**message, "content": probe}), whole)
        for probe in PROBES
    ):
        yield f"text of the {message['role']}"


def _thinking_otherwise(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The turn with another thought in the place of each of its thoughts."""
    text = message["content"]
    for found in THOUGHT.finditer(text):
        start, stop = found.span(2)
        if thought := text[start:stop].strip():
            other = PROBES[thought == PROBES[0]]
            yield {
                **message,
                "content": text[:start] + text[start:stop].replace(thought, other) + text[stop:],
            }


def _replaced(messages: Messages, turn: int, other: dict[str, Any]) -> Messages:
    return [*messages[:turn], other, *messages[turn + 1 :]]


def _same(chat: Conversation, messages: Messages, whole: str) -> bool:
    """Say whether these messages are rendered like the whole conversation; a template that refuses
    them reads what they lack."""
    try:
        return chat.text(messages) == whole
    except DataError:
        return False
