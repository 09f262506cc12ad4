"""Overlaps with test sets: words in a row that a text has in common with a test.

As in the search for contamination of GPT-3 (arXiv 2005.14165, appendix C) and in lm-eval, on normal
texts, of which signs are no words: two calculations would soon have 13 of those in common. Layers:

* long: `size` words in a row (13) of a test's question or answer stand in the prompt or the answer;
* counted: `COUNTED` words in a row (8) do, which is often chance and only told;
* whole: a question of fewer than `size` words stands in the prompt or the answer as it is; one
  of fewer than `COUNTED` words, in the prompt alone, with its signs; one of fewer than `SHORTEST`,
  is the prompt.

A question that is the prompt is found by one of these, whatever its length.

`TestTexts.overlap` stops at the first that is found; `TestTexts.layers` looks at a row of several
turns, and says what each layer finds: for it, a question of fewer than `size` words is also found
where `COUNTED` of them in a row stand in a text.

Plain functions of texts: no rows, no recipe. Tests that are reworded or translated are not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from aligner.data.normal_text import words_of

COUNTED = 8
SHORTEST = 4

Layer = Literal["ngram", "short"]

Index = dict[int, int]
"""Hash of words -> number of the first test that has them."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a text has in common with a test. `is_long`: enough to be dropped for."""

    test: str
    """Name of the test that has the words."""
    words: str
    """The words, in their normal form."""
    is_long: bool


class TestTexts:
    """The texts of test sets, ready to be looked for. `size`: words of a long overlap."""

    __test__ = False  # not a test of pytest

    def __init__(self, size: int = 13) -> None:
        self.size = size
        self.counted = min(COUNTED, size)
        self._names: list[str] = []
        self._texts: list[tuple[str, ...]] = []
        self._counted: Index = {}
        self._long: Index = {}
        self._same: Index = {}
        self._short: dict[int, Index] = {}
        self._whole: dict[int, Index] = {}
        self._part: Index = {}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, question: str, answer: str = "") -> None:
        """Add a test. `name`, a file and a row, say, is what an overlap says of it."""
        number, asked = len(self._names), words_of(question)
        texts = [_plain(asked), _plain(words_of(answer))]
        for words in texts:
            for gram in _hashes(words, self.counted):
                self._counted.setdefault(gram, number)
            for gram in _hashes(words, self.size):
                self._long.setdefault(gram, number)
        if len(texts[0]) < min(SHORTEST, self.size):
            self._same.setdefault(hash(tuple(asked)), number)
        elif len(texts[0]) < self.counted:
            self._short.setdefault(len(asked), {}).setdefault(hash(tuple(asked)), number)
        elif len(texts[0]) < self.size:
            words = texts[0]
            self._whole.setdefault(len(words), {}).setdefault(hash(tuple(words)), number)
            for gram in _hashes(words, self.counted):
                self._part.setdefault(gram, number)
        self._names.append(name)
        self._texts.append(tuple(_padded(words) for words in (asked, *texts) if words))

    def overlap(self, prompt: str, answer: str) -> Overlap | None:
        """Return the first long overlap of a row with a test, else the first that is only counted,
        else None."""
        asked = words_of(prompt)
        found = self._first(asked, len(asked), self._same) or self._any(asked, self._short)
        texts = [] if found else [_plain(asked), _plain(words_of(answer))]
        counted = [self._first(words, self.counted, self._counted) for words in texts]
        for words, has_some in zip(texts, counted):
            if has_some and not found:  # whoever has more words has these
                found = self._first(words, self.size, self._long) or self._any(words, self._whole)
        if found:
            return Overlap(*found, is_long=True)
        return next((Overlap(*some, is_long=False) for some in counted if some), None)

    def layers(self, asked: Sequence[str], told: Iterable[str]) -> dict[Layer, Overlap]:
        """Return what each layer finds first in a row: `asked`, what its user says, turn by turn;
        `told`, its answers.

        `ngram`: `size` words in a row of a test's question or answer. `short`: a question of fewer
        words, whole or `COUNTED` words of it in a row; one of fewer than `SHORTEST`, as a whole
        turn, or as all turns together.
        """
        turns = [words_of(turn) for turn in asked]
        every = list(chain.from_iterable(turns))
        whole = (every, *turns) if len(turns) > 1 else (every,)
        found: dict[Layer, tuple[str, str] | None] = {"ngram": None, "short": None}
        for words in whole:
            found["short"] = found["short"] or self._first(words, len(words), self._same)
        found["short"] = found["short"] or self._any(every, self._short)
        for words in (_plain(every), *(_plain(words_of(text)) for text in told)):
            if not self._first(words, self.counted, self._counted):
                continue  # whoever has more words has these
            found["ngram"] = found["ngram"] or self._first(words, self.size, self._long)
            found["short"] = (
                found["short"]
                or self._any(words, self._whole)
                or self._first(words, self.counted, self._part)
            )
        return {name: Overlap(*some, is_long=True) for name, some in found.items() if some}

    def _any(self, words: Sequence[str], by_length: dict[int, Index]) -> tuple[str, str] | None:
        """Return a whole question that stands in a text."""
        for length, index in sorted(by_length.items()):
            if found := self._first(words, length, index):
                return found
        return None

    def _first(self, words: Sequence[str], size: int, known: Index) -> tuple[str, str] | None:
        """Return the test and the words of the first gram that is known. A hash only proposes."""
        if not words or known.keys().isdisjoint(_hashes(words, size)):
            return None
        for start, gram in enumerate(_hashes(words, size)):
            if gram in known:
                text = " ".join(words[start : start + size])
                if any(_padded([text]) in test for test in self._texts[known[gram]]):
                    return self._names[known[gram]], text
        return None


def _hashes(words: Sequence[str], size: int) -> Iterator[int]:
    """Hashes of the runs of so many words, in their order."""
    return map(hash, zip(*(words[start:] for start in range(size))))


def _plain(words: Sequence[str]) -> list[str]:
    """Words without signs."""
    return [word for word in words if word[0].isalnum()]


def _padded(words: Sequence[str]) -> str:
    return f" {' '.join(words)} "
