"""Votes as columns: which model met which on what prompt, and how much of the vote went to the
first.

A vote is one row that counts: a game of a judge, a merged battle, or a person's choice. `outcome`
is 1 where model `a` won, 0 where `b` won, and between the two for ties and soft preferences. Names
become numbers in sorted order, so that the order of rows and files changes nothing.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from aligner.arena.records import Style

Floats = npt.NDArray[Any]
"""Of 64 bits, where nothing else is said."""
Integers = npt.NDArray[Any]

StyleCounts = Style | Mapping[str, Any] | None
"""The style of an answer, as far as it is known: a record, or counts by the names of FEATURES."""

FEATURES = ("length", "headers", "list_items", "bold")
UNKNOWN = float("nan")
NOT_KNOWN = (UNKNOWN,) * len(FEATURES)


@dataclass(frozen=True)
class Votes:
    """Rows of the same length; `a`, `b`, `prompt` and `category` are numbers of the names beside
    them.

    `seat`: 1 where the judge saw a first, -1 where it saw b first, 0 where both or nobody knows.
    `grade`: 2 and 1 for a much and a slightly better a, 0 for a tie, negative for b; NaN where the
    verdict had no grades. `style_a`, `style_b`: a column for each of FEATURES, NaN where not known.
    """

    models: list[str]
    prompts: list[str]
    categories: list[str]
    a: Integers
    b: Integers
    prompt: Integers
    category: Integers
    outcome: Floats
    weight: Floats
    seat: Floats
    grade: Floats
    style_a: Floats
    style_b: Floats
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    judges: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.a)

    def where(self, kept: npt.NDArray[np.bool_]) -> Votes:
        """The votes that are kept, with the models and prompts that they still name."""
        rows = {name: getattr(self, name)[kept] for name in _ROWS}
        both = np.concatenate([rows["a"], rows["b"]])
        models, numbers = np.unique(both, return_inverse=True)
        prompts, rows["prompt"] = np.unique(rows["prompt"], return_inverse=True)
        rows["a"], rows["b"] = np.split(numbers, 2)
        return replace(
            self,
            models=[self.models[number] for number in models],
            prompts=[self.prompts[number] for number in prompts],
            **rows,
        )

    def among(self, models: Sequence[str]) -> Votes:
        """The votes between two of these models."""
        wanted = np.isin(np.array(self.models, dtype=object), list(models))
        return self.where(wanted[self.a] & wanted[self.b])


_ROWS = (
    *("a", "b", "prompt", "category", "outcome", "weight", "seat", "grade"),
    *("style_a", "style_b"),
)


class VoteBuilder:
    """Takes votes one by one in little memory: about 120 bytes each."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.notes: list[str] = []
        self.judges: set[str] = set()
        self._models: dict[str, int] = {}
        self._prompts: dict[str, int] = {}
        self._categories: dict[str, int] = {}
        self._whole = array("q")
        self._parts = array("d")

    def add(
        self,
        a: str,
        b: str,
        prompt: str,
        outcome: float,
        *,
        category: str = "",
        weight: float = 1.0,
        seat: float = 0.0,
        grade: float = UNKNOWN,
        styles: tuple[StyleCounts, StyleCounts] = (None, None),
    ) -> None:
        """Add a vote; what is wrong with one is for the reader to find."""
        names = ((self._models, a), (self._models, b), (self._prompts, prompt))
        numbers = [known.setdefault(name, len(known)) for known, name in names]
        numbers.append(self._categories.setdefault(category, len(self._categories)))
        self._whole.extend(numbers)
        self._parts.extend((outcome, weight, seat, grade, *counts(styles[0]), *counts(styles[1])))

    def __len__(self) -> int:
        return len(self._whole) // 4

    def votes(self) -> Votes:
        """All votes, names sorted."""
        whole = np.frombuffer(self._whole, np.int64).reshape(-1, 4) if len(self) else _NO_NUMBERS
        parts = np.frombuffer(self._parts, np.float64).reshape(-1, 12) if len(self) else _NO_PARTS
        models, model_numbers = _sorted(self._models)
        prompts, prompt_numbers = _sorted(self._prompts)
        categories, category_numbers = _sorted(self._categories)
        return Votes(
            models,
            prompts,
            categories,
            model_numbers[whole[:, 0]],
            model_numbers[whole[:, 1]],
            prompt_numbers[whole[:, 2]],
            category_numbers[whole[:, 3]],
            outcome=np.ascontiguousarray(parts[:, 0]),
            weight=np.ascontiguousarray(parts[:, 1]),
            seat=np.ascontiguousarray(parts[:, 2]),
            grade=np.ascontiguousarray(parts[:, 3]),
            style_a=np.ascontiguousarray(parts[:, 4:8]),
            style_b=np.ascontiguousarray(parts[:, 8:12]),
            left_out=dict(self.left_out),
            notes=self.notes,
            judges=sorted(self.judges),
        )


_NO_NUMBERS = np.empty((0, 4), np.int64)
_NO_PARTS = np.empty((0, 12))


def counts(style: StyleCounts) -> tuple[float, ...]:
    """A number for each of FEATURES, NaN where it is not known."""
    if style is None:
        return NOT_KNOWN
    if isinstance(style, Style):
        return (style.length, style.headers, style.list_items, style.bold)
    return tuple(float(style.get(name, UNKNOWN)) for name in FEATURES)


def _sorted(known: Mapping[str, int]) -> tuple[list[str], Integers]:
    """Names in order, and from the number of each when it was met to the one in that order."""
    names = sorted(known)
    numbers = np.empty(len(names), np.int64)
    numbers[[known[name] for name in names]] = np.arange(len(names))
    return names, numbers
