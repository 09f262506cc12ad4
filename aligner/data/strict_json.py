"""JSON in which no object may hold a key twice; Python's own reader keeps the last value and says
nothing.

`decode` takes hardly longer than `json.loads`: the scanner in C is called at once, which saves what
looking at each object costs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from json.scanner import make_scanner
from typing import Any


class RepeatedKey(ValueError):
    """A key that an object holds twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"an object holds the key {key!r} twice")
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    counts = Counter(name for name, _ in pairs)
    raise RepeatedKey(next(name for name, count in counts.items() if count > 1))


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_DECODER)  # type: ignore[arg-type]


def decode(text: str) -> Any:
    """The value of a JSON text. Raises: RepeatedKey; JSONDecodeError, RecursionError as
    `json.loads` does."""
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        return _DECODER.decode(text)  # blanks come first, or something that is no JSON
    return value if text[end:] in ("", "\n") else _DECODER.decode(text)


def decode_rows(text: str) -> Any:
    """The value of a JSON text; in a list, a RepeatedKey stands in the place of each item that
    holds one at any depth."""
    try:
        return _DECODER.decode(text)
    except RepeatedKey:
        found = json.loads(text, object_pairs_hook=_object_or_error)
        return [_error_in(item) or item for item in found] if isinstance(found, list) else found


def _object_or_error(pairs: list[tuple[str, Any]]) -> dict[str, Any] | RepeatedKey:
    try:
        return _object(pairs)
    except RepeatedKey as error:
        return error


def _error_in(value: Any) -> RepeatedKey | None:
    if isinstance(value, RepeatedKey):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((error for error in map(_error_in, inner) if error), None)
