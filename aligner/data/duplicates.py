"""Texts that are the same as an earlier one, or nearly: exact by their normal form, near by the
Jaccard similarity of their word 3-grams.

Near ones are found by MinHash (Broder 1997; `rensa` in the form of arXiv 1704.04370) and banded
signatures. The hashes only propose: whether two texts are as similar as the threshold says is
decided on their grams, so that an estimate drops nobody. What the hashes overlook is at most
`MISSED` of the pairs at the threshold, and less above it. A text is compared with those that were
kept before it, in the order in which they come; nothing is random.

Unit of comparison is a whole text. Paraphrases in other words are not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field

import rensa

from aligner.data.normal_text import normal_text

GRAM = 3
HASHES = 128
SEED = 1
MISSED = 1e-3
LOWEST = 0.4
"""Lowest threshold: below it nearly every text would have to be compared with every other."""


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier text that a text is the same as. `similarity` is 1 for an exact duplicate."""

    name: str
    exact: bool
    similarity: float = 1.0


@dataclass
class SeenTexts:
    """The texts so far. `threshold`: similarity from which a text is a near duplicate, or None to
    look for exact ones alone; `exact` false looks for near ones alone, which exact ones are too.

    `counts`: `compared` texts that the hashes proposed, and `confirmed` ones among them.
    """

    threshold: float | None
    exact: bool = True
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._names: list[str] = []
        self._texts: list[str] = []
        self._by_text: dict[str, int] = {}
        self._index: rensa.RMinHashLSH | None = None
        if self.threshold is not None:
            assert LOWEST <= self.threshold <= 1.0, "the recipe has looked"
            self._index = rensa.RMinHashLSH(self.threshold, HASHES, bands_for(self.threshold))

    def match(self, text: str, kin: Container[str] = ()) -> Match | None:
        """Return the earliest kept text that this one is the same as, or nearly. `kin`: names of
        texts that it may be near to, but not the same as."""
        normal = normal_text(text) or text.strip()
        if self.exact and (found := self._by_text.get(normal)) is not None:
            return Match(self._names[found], exact=True)
        if self._index is None:
            return None
        grams = grams_of(normal)
        for number in sorted(self._index.query(_signature(grams))):
            if self._names[number] in kin:
                continue
            self.counts["compared"] += 1
            similarity = jaccard(grams, grams_of(self._texts[number]))
            if similarity >= (self.threshold or 0.0):
                self.counts["confirmed"] += 1
                return Match(self._names[number], exact=False, similarity=similarity)
        return None

    def add(self, text: str, name: str) -> None:
        """Keep a text, which later ones are compared with; `name` is what a match says of it."""
        normal = normal_text(text) or text.strip()
        if self._by_text.setdefault(normal, len(self._names)) < len(self._names):
            return
        if self._index is not None:
            self._index.insert(len(self._names), _signature(grams_of(normal)))
        self._names.append(name)
        self._texts.append(normal)


def bands_for(threshold: float) -> int:
    """Return the smallest number of bands that overlooks at most `MISSED` of the pairs at the
    threshold: with rows r of each band, (1 - threshold^r)^(HASHES / r)."""
    for rows in (64, 32, 16, 8, 4, 2):
        if (1.0 - threshold**rows) ** (HASHES / rows) <= MISSED:
            return HASHES // rows
    return HASHES


def grams_of(normal: str) -> frozenset[str]:
    """Return the word 3-grams of a normal text; of a shorter one its words, and the text itself."""
    words = normal.split()
    if len(words) < GRAM:
        return frozenset([*words, normal])
    return frozenset(map(" ".join, zip(words, words[1:], words[2:])))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """|A and B| / |A or B|."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _signature(grams: frozenset[str]) -> rensa.RMinHash:
    signature = rensa.RMinHash(HASHES, SEED)
    signature.update(list(grams))
    return signature
