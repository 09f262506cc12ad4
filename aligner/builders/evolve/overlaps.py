"""Overlaps with test sets: words in a row that a text has in common with a test.

As in the search for contamination of GPT-3 (arXiv 2005.14165, appendix C) and in lm-eval, on normal
texts. Four layers:

* long: `size` words in a row (13) of a test's question or answer stand in the prompt or the answer;
* counted: `COUNTED` words in a row (8) do, which is often chance and only told;
* whole: a question of fewer than `size` words stands in the prompt or the answer as it is; one
  of fewer than `COUNTED` words, in the prompt alone; one of fewer than `SHORTEST`, is the prompt;
* exact: a question that is the prompt is found by one of these, whatever its length.

Plain functions of texts: no rows, no recipe. Tests that are reworded or translated are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aligner.data.normal_text import words_of

COUNTED = 8
SHORTEST = 4


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
        self._counted: dict[int, int] = {}
        self._long: dict[int, int] = {}
        self._whole: dict[int, dict[int, int]] = {}
        self._texts: list[tuple[str, ...]] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, question: str, answer: str = "") -> None:
        """Add a test. `name`, a file and a row, say, is what an overlap says of it."""
        number = len(self._names)
        asked = words_of(question)
        texts = [asked, words_of(answer)]
        for words in texts:
            for gram in _hashes(words, self.counted):
                self._counted.setdefault(gram, number)
            for gram in _hashes(words, self.size):
                self._long.setdefault(gram, number)
        if 0 < len(asked) < self.size:
            self._whole.setdefault(len(asked), {}).setdefault(hash(tuple(asked)), number)
        self._names.append(name)
        self._texts.append(tuple(_padded(words) for words in texts if words))

    def overlap(self, prompt: str, answer: str) -> Overlap | None:
        """Return the first long overlap of a row with a test, else the first that is only counted,
        else None."""
        texts = [words_of(prompt), words_of(answer)]
        if found := self._short_question(texts[0]):
            return Overlap(*found, is_long=True)
        counted = [self._first(words, self.counted, self._counted) for words in texts]
        for words, has_some in zip(texts, counted):
            if has_some and (found := self._long_part(words)):
                return Overlap(*found, is_long=True)
        return next((Overlap(*found, is_long=False) for found in counted if found), None)

    def _short_question(self, asked: Sequence[str]) -> tuple[str, str] | None:
        """Return a question of few words that stands in the prompt, or is it."""
        for length, known in sorted(self._whole.items()):
            is_looked_for = length >= SHORTEST or length == len(asked)
            if is_looked_for and (found := self._first(asked, length, known)):
                return found
        return None

    def _long_part(self, words: Sequence[str]) -> tuple[str, str] | None:
        """Return a run of `size` words of a test, or a whole question of nearly as many."""
        if found := self._first(words, self.size, self._long):
            return found
        for length, known in sorted(self._whole.items()):
            if length >= self.counted and (found := self._first(words, length, known)):
                return found
        return None

    def _first(
        self, words: Sequence[str], size: int, known: dict[int, int]
    ) -> tuple[str, str] | None:
        """Return the test and the words of the first gram that is known. A hash only proposes."""
        if known.keys().isdisjoint(_hashes(words, size)):
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


def _padded(words: Sequence[str]) -> str:
    return f" {' '.join(words)} "
