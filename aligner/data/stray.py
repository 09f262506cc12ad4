"""Find columns that look like a part of the conversation and that the row's form does not read.

A question beside `chosen` and `rejected` is refused, since without it the answers' common beginning
would become the prompt; so are images and sounds, whose answers would be trained without them.
Whatever else looks like a part of the conversation is left to the user, with a note in how many
rows it is filled in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from aligner.config.recipe import Source
from aligner.data.checks import BadRow
from aligner.data.rows import VARIABLES
from aligner.errors import DataError

QUESTIONS = (
    "question",
    "query",
    "problem",
    "instruction",
    "input",
    "user",
    "request",
    "user_prompt",
)
PARTS = frozenset(
    (
        *QUESTIONS,
        "context",
        "documents",
        "passage",
        "system",
        "system_prompt",
        "history",
        "tools",
        "functions",
        "response",
        VARIABLES,
    )
) | frozenset(("output", "completion", "reasoning", "reasoning_content", "thinking"))
"""Names of columns that look like a part of the conversation. An `answer` is most often there to
compare with."""

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
PLACEHOLDER = re.compile(
    r"<\|?(?:image|video|audio)(?:_pad|_soft_token)?\|?>|\[IMG\]", re.IGNORECASE
)

Row = Mapping[str, Any]


def refuse_stray_question(head: Sequence[Row], source: Source, form: str) -> None:
    """Raise DataError for pairs without a prompt beside which a question stands that is not part of
    them."""
    if form != "preference" or source.format != "auto" or any(row.get("prompt") for row in head):
        return
    for row in head:
        name = next(
            (name for name in QUESTIONS if isinstance(row.get(name), str) and row[name].strip()),
            None,
        )
        if name is not None and row[name].strip() not in _shared(
            row.get("chosen"), row.get("rejected")
        ):
            raise DataError(
                f"{source.path}: `{name}` stands beside `chosen` and `rejected`, and there is no "
                "`prompt`",
                f"if it is the prompt, say so: `columns: {{prompt: {name}}}`; if what both "
                "answers share at their beginning is, "
                "say `format: preference`",
            )


def _shared(chosen: Any, rejected: Any) -> str:
    """What chosen and rejected share at their beginning, as text."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        return "".join(
            letter
            for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected))
        )
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        return ""
    same = [one for one, other in zip(chosen, rejected) if one == other]
    return "\n".join(str(turn.get("content", "")) for turn in same if isinstance(turn, Mapping))


def refuse_media(row: Row) -> None:
    """Raise BadRow for a row whose text speaks of images or sounds that are in a column beside
    it."""
    for name in MEDIA:
        value = row.get(name)
        if value is None or value in ("", b"") or value == [] or value == {}:
            continue
        beside = (text for key, item in row.items() if key not in MEDIA for text in _texts(item))
        if not isinstance(value, str) or any(PLACEHOLDER.search(text) for text in beside):
            raise BadRow(
                f"`{name}` is filled in, and only text can be trained on: its answer would be "
                "trained without it"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def unused_parts(head: Sequence[Row], unused: Iterable[str]) -> dict[str, int]:
    """Columns that are not used and look like a part of the conversation -> how many of the rows
    say something new there."""
    idle = [*unused]
    new = {}
    for name in idle:
        if name in PARTS and (rows := sum(_is_new(row, name, idle) for row in head)):
            new[name] = rows
    return new


def _is_new(row: Row, name: str, idle: Sequence[str]) -> bool:
    """Whether a column says something that no column in use says."""
    value = row.get(name)
    if not isinstance(value, str):
        return bool(value)
    used = (text for key, item in row.items() if key not in idle for text in _texts(item))
    return bool(value.strip()) and not any(value.strip() in text for text in used)
