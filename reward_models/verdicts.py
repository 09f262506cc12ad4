"""What a scorer says of rows: a verdict for each, and many of them as columns of numbers."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a scorer says of one row.

    `value`: the score of an answer, or the probability in [0, 1] that the first answer of a pair is
    better; None without a verdict, and then `error` says why. `flipped`: it named another answer
    when the order changed.
    """

    value: float | None
    attributes: dict[str, float] = field(default_factory=dict)
    remark: str = ""
    flipped: bool = False
    error: str = ""


class Verdicts:
    """Verdicts on rows 0 to n - 1: memory holds 8 bytes for the value of a row and 9 for each of
    its attributes, and the rest for those rows alone that have it.

    `values`: by row, NaN where there is none. `silent`: the rows without a value, each with the
    reason. `remarks` and `flips`: of the rows that have them.
    """

    def __init__(self, count: int) -> None:
        self.values = array("d", [math.nan]) * count
        self.silent: dict[int, str] = {}
        self.remarks: dict[int, str] = {}
        self.flips: set[int] = set()
        self._attributes: dict[str, tuple[array[float], bytearray]] = {}

    def put(self, row: int, verdict: Verdict) -> None:
        """Keep the verdict on a row that has none yet."""
        if verdict.value is None:
            self.silent[row] = verdict.error
        else:
            self.values[row] = verdict.value
        if verdict.remark:
            self.remarks[row] = sys.intern(verdict.remark)
        if verdict.flipped:
            self.flips.add(row)
        for name, value in verdict.attributes.items():
            if name not in self._attributes:
                self._attributes[name] = array("d", [0.0]) * len(self), bytearray(len(self))
            column, is_there = self._attributes[name]
            column[row], is_there[row] = value, True

    def attribute(self, name: str) -> list[float]:
        """The values of an attribute, of the rows that have it."""
        column, is_there = self._attributes[name]
        return [value for value, there in zip(column, is_there) if there]

    def attribute_names(self) -> list[str]:
        """Every name that a row has an attribute of, in the order of their first appearance."""
        return list(self._attributes)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> Verdict:
        value = self.values[row]
        return Verdict(
            None if row in self.silent else value,
            {
                name: column[row]
                for name, (column, is_there) in self._attributes.items()
                if is_there[row]
            },
            self.remarks.get(row, ""),
            row in self.flips,
            self.silent.get(row, ""),
        )

    def __iter__(self) -> Iterator[Verdict]:
        return map(self.__getitem__, range(len(self)))
