"""The error for one row that cannot be used, and the checks of text that every form of row
needs."""

from __future__ import annotations

from typing import Any


class BadRow(ValueError):
    """A row that cannot be used, and why. Caught by the reader, which knows the file and the row
    number."""


def kind(value: Any) -> str:
    """A JSON value's type, in words for messages."""
    names = {
        str: "text",
        bool: "true/false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def text(value: Any, name: str, *, allow_empty: bool = False) -> str:
    """The value as a string that can be tokenized, or the reason why not."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {kind(value)}, not text")
    if not allow_empty and not value.strip():
        raise BadRow(f"{name} is empty")
    if not value.isascii():
        _refuse_surrogates(value, name)
    return value


def _refuse_surrogates(value: str, name: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # put there by the decoder for a byte that it could not read
            raise BadRow(
                f"{name} is not UTF-8: byte 0x{code - 0xDC00:02x} at character {error.start + 1}"
            ) from None
        raise BadRow(
            f"{name} holds half a surrogate pair (\\u{code:04x}) at character {error.start + 1}"
        ) from None
