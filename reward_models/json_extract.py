"""Read JSON out of responses, strictly, and compare it. Whatever an answer holds, this ends soon
and raises nothing.

Stricter than Python's parser, which takes more than JSON is: no NaN and no Infinity, no key twice
in an object, no numeral beyond what a float holds, no lone surrogate in a string. An answer of more
than `MAX_CHARACTERS`, or nested deeper than `MAX_DEPTH`, is not read at all: what checks a schema
goes down one level with several calls of functions.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 50

INVALID = object()
"""What stands for a text that is no JSON; None is a JSON value."""


def last_block(text: str, *languages: str) -> str | None:
    """The inside of the last complete code block in one of the languages, or None.

    A block begins with a line of three backticks and its language, and ends with a line of three
    backticks alone; one that is not ended before the next begins is not complete.
    """
    found: tuple[int, int] | None = None
    begun: int | None = None
    is_open = False
    lines = text.split("\n")
    for number, line in enumerate(lines):
        mark = line.strip()
        if not mark.startswith("```"):
            continue
        if mark != "```" or not is_open:
            is_open = True
            begun = (
                number + 1
                if mark[3:].lower().split()[:1] in [[name] for name in languages]
                else None
            )
            continue
        if begun is not None:
            found = (begun, number)
        is_open, begun = False, None
    return None if found is None else "\n".join(lines[found[0] : found[1]])


def read_answer(answer: str) -> Any:
    """The JSON value of an answer: of its last ```json block, else of the whole; or INVALID."""
    block = last_block(answer, "json")
    return read_json(answer if block is None else block)


def read_json(text: str) -> Any:
    """The value of a text, or INVALID."""
    if len(text) > MAX_CHARACTERS:
        return INVALID
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return INVALID
    return value if _is_plain(value) else INVALID


def read_only_object(text: str) -> Any:
    """The object in a text that has one, whatever words stand around it; or INVALID. A text with
    another brace before or behind it has none: which of two is meant is not guessed. Strings may
    hold line breaks as they are, which language models write often."""
    start = text.find("{")
    if len(text) > MAX_CHARACTERS or start < 0:
        return INVALID
    try:
        value, end = _LENIENT.raw_decode(text, start)
    except (ValueError, RecursionError):
        return INVALID
    is_only = "{" not in text[end:] and "}" not in text[:start] + text[end:]
    return value if is_only and _is_plain(value) else INVALID


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond what a float holds")
    return value


def _integer(text: str) -> int:
    _float(text)
    return int(text)


def _decoder(*, strict: bool) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_object,
        parse_constant=_refuse,
        parse_float=_float,
        parse_int=_integer,
        strict=strict,
    )


_DECODER, _LENIENT = _decoder(strict=True), _decoder(strict=False)


def _is_plain(value: Any) -> bool:
    """Whether it is not too deep, and all its strings can be written down."""
    level, depth = [value], 0
    while level:
        depth += any(isinstance(item, dict | list) for item in level)
        if depth > MAX_DEPTH or not all(_can_be_written(item) for item in level):
            return False
        inside: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inside += [*item, *item.values()]
            elif isinstance(item, list):
                inside += item
        level = inside
    return True


def _can_be_written(value: Any) -> bool:
    if not isinstance(value, str):
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def same_value(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not; the order of keys says
    nothing."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            same_value(first[key], second[key]) for key in first
        )
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same_value, first, second))
    return bool(first == second)
