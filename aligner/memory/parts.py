"""A line of an estimate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the table: what is in memory, how many bytes, and what they follow from."""

    name: str
    bytes: int
    how: str


Parts = tuple[Part, ...]


def total(parts: Iterable[Part]) -> int:
    """Return the bytes of parts together."""
    return sum(part.bytes for part in parts)
