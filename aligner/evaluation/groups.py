"""Group pairs for an accuracy of each group: by a column, and by the length of the responses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aligner.evaluation.bootstrap import Floats, Integers
from aligner.evaluation.pair_scores import Pair, numbered

NONE = "(none)"
"""Category of the rows that have none."""

CATEGORY_COLUMNS = ("category", "subset", "source")
"""Columns that are taken for the category where none is named, the first that is there."""

BUCKETS = 5


@dataclass(frozen=True, slots=True)
class Groups:
    """A division of the pairs: names of the groups, and the group of each pair."""

    names: list[str]
    of: Integers


def category_column(pairs: Sequence[Pair]) -> str | None:
    """The column to divide by where none is named."""
    for name in CATEGORY_COLUMNS:
        if any(pair.extra.get(name) is not None for pair in pairs):
            return name
    return None


def by_column(pairs: Sequence[Pair], column: str) -> Groups:
    """The pairs by the values of a column, in the order of their appearance."""
    values = []
    for pair in pairs:
        value = pair.extra.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            value = NONE
        elif not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False, default=str)
        values.append(value)
    return Groups(list(dict.fromkeys(values)), numbered(values))


def length_differences(pairs: Sequence[Pair]) -> Integers:
    """Characters of the chosen answer less those of the rejected one."""
    return np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs], dtype=np.int64)


def buckets(values: Integers | Floats) -> Groups:
    """The pairs in about `BUCKETS` equal parts by a number, such as the difference in length; equal
    numbers stay together."""
    inner = np.unique(np.quantile(values, np.linspace(0, 1, BUCKETS + 1)[1:-1]))
    held, of = np.unique(np.searchsorted(inner, values), return_inverse=True)
    return Groups([str(number) for number in range(1, len(held) + 1)], of.astype(np.int64))


def by_sign(differences: Integers) -> Groups:
    """The pairs by whether the chosen answer is shorter, as long, or longer."""
    names = {-1: "shorter", 0: "as long", 1: "longer"}
    held, of = np.unique(np.sign(differences), return_inverse=True)
    return Groups([names[int(sign)] for sign in held], of.astype(np.int64))
