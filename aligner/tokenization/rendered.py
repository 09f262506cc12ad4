"""A rendered conversation as text and as token ids, and what two sequences share.

Where a character lies is asked of the tokenizer alone; nothing here knows templates or turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding

Span = tuple[int, int]
"""Half-open range of token places."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A whole conversation: its text, its ids, and which character lies in which token."""

    text: str
    ids: list[int]
    encoding: Encoding | None
    """None where the tokenizer does not say which character lies in which token."""

    def place(self, character: int) -> int | None:
        """Return the place of the token that holds a character; None where the tokenizer does not
        say."""
        if character == len(self.text):
            return len(self.ids)
        place: int | None = (
            None if self.encoding is None else self.encoding.char_to_token(character)
        )
        return place

    def is_first(self, character: int) -> bool:
        """Say whether a character is the first of its token, so that no token lies across that
        border."""
        return character in (0, len(self.text)) or self.place(character - 1) != self.place(
            character
        )


def marked_spans(mask: Sequence[int]) -> list[Span]:
    """Return the runs of 1 in a mask."""
    flags, spans, stop = bytes([*mask, 0]), [], 0
    while (start := flags.find(1, stop)) >= 0:
        stop = flags.find(0, start)
        spans.append((start, stop))
    return spans


def common_prefix(left: Sequence, right: Sequence) -> int:
    """Return how many items two sequences of one type share at their start."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:  # the first `low` items are shared, the first `high` are not
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


def common_suffix(left: Sequence, right: Sequence) -> int:
    """Return how many items two sequences of one type share at their end."""
    return common_prefix(left[::-1], right[::-1])
