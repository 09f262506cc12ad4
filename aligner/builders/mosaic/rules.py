"""The rules of the Permute and Maskout strategies: when one can be used, and what it asks for.

Sections 1.6 and 1.7 of our notes on Mosaic-IT (arXiv 2405.13326): ten orders, five masks. Different
from the authors' code: a rule is used only where it says one thing. Sorting needs all keys to
differ, "first letter" is the first letter of the instruction without regard to case, longest and
shortest need a clear cut, and rules on numbers need numbers.

Instructions are numbered from 1. A rule sees the instructions as they were given, without numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aligner.builders.mosaic.phrasings import Phrasings


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule comes to for some instructions: the order of the answers, what is left out, what
    the text must say."""

    order: tuple[int, ...]
    dropped: tuple[int, ...] = ()
    listed: tuple[int, ...] = ()
    """The numbers for the slot {list}."""
    count: int | None = None
    """The number for the slot {count}."""


Instructions = Sequence[str]
Key = Callable[[str, Phrasings], float | None]


def first_letter(text: str, phrasings: Phrasings) -> float | None:
    """Return the index in the alphabet of the first letter of a text; None where that letter is
    none of the alphabet's."""
    letter = next((letter for letter in text if letter.isalpha()), "").casefold()
    # A ligature is several letters.
    index = phrasings.alphabet.find(letter) if len(letter) == 1 else -1
    return None if index < 0 else float(index)


def words(text: str, phrasings: Phrasings) -> float | None:
    """Return the number of words between white space; None in a language without them."""
    return float(len(text.split())) if phrasings.words else None


def characters(text: str, phrasings: Phrasings) -> float | None:
    """Return the number of characters."""
    return float(len(text))


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `choose` gives None where the rule would be ambiguous for these instructions."""

    name: str
    needs_numbers: bool
    choose: Callable[[Instructions, random.Random, Phrasings, tuple[float, float]], Choice | None]


def _all(n: int) -> range:
    return range(1, n + 1)


def shuffled(n: int, rng: random.Random) -> tuple[int, ...]:
    """Return a random order of 1..n; all are equally likely."""
    order = list(_all(n))
    for last in range(n - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        order[last], order[other] = order[other], order[last]
    return tuple(order)


def _explicit_order(
    texts: Instructions, rng: random.Random, phrasings: Phrasings, ratio: tuple[float, float]
) -> Choice:
    order = shuffled(len(texts), rng)
    return Choice(order, listed=order)


def _reverse(
    texts: Instructions, rng: random.Random, phrasings: Phrasings, ratio: tuple[float, float]
) -> Choice:
    return Choice(tuple(reversed(_all(len(texts)))))


def _sorted_by(key: Key, *, descending: bool) -> Callable[..., Choice | None]:
    def choose(
        texts: Instructions, rng: random.Random, phrasings: Phrasings, ratio: tuple[float, float]
    ) -> Choice | None:
        keys = [key(text, phrasings) for text in texts]
        if None in keys or len(set(keys)) < len(keys):
            return None
        order = sorted(
            _all(len(texts)), key=lambda index: keys[index - 1] or 0.0, reverse=descending
        )
        return Choice(tuple(order))

    return choose


def _parity_first(first: int) -> Callable[..., Choice]:
    def choose(
        texts: Instructions, rng: random.Random, phrasings: Phrasings, ratio: tuple[float, float]
    ) -> Choice:
        numbers = _all(len(texts))
        return Choice(
            (*(i for i in numbers if i % 2 == first), *(i for i in numbers if i % 2 != first))
        )

    return choose


PERMUTE: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("explicit", True, _explicit_order),
        Rule("reverse", False, _reverse),
        Rule("alphabet_ascending", False, _sorted_by(first_letter, descending=False)),
        Rule("alphabet_descending", False, _sorted_by(first_letter, descending=True)),
        Rule("words_ascending", False, _sorted_by(words, descending=False)),
        Rule("words_descending", False, _sorted_by(words, descending=True)),
        Rule("characters_ascending", False, _sorted_by(characters, descending=False)),
        Rule("characters_descending", False, _sorted_by(characters, descending=True)),
        Rule("odd_first", True, _parity_first(1)),
        Rule("even_first", True, _parity_first(0)),
    )
}


def mask_count(n: int, rng: random.Random, ratio: tuple[float, float]) -> int:
    """Return how many of n are left out: max(1, floor(n * rho)) with rho uniform in `ratio`, and
    never all of them."""
    low, high = ratio
    return min(n - 1, max(1, int(n * (low + (high - low) * rng.random()))))


def _without(
    n: int, dropped: tuple[int, ...], *, listed: bool = False, counted: bool = False
) -> Choice:
    kept = tuple(index for index in _all(n) if index not in dropped)
    return Choice(kept, dropped, dropped if listed else (), len(dropped) if counted else None)


def _explicit_mask(
    texts: Instructions, rng: random.Random, phrasings: Phrasings, ratio: tuple[float, float]
) -> Choice:
    n = len(texts)
    dropped = shuffled(n, rng)[: mask_count(n, rng, ratio)]
    return _without(n, tuple(sorted(dropped)), listed=True)


def _extremes(*, longest: bool) -> Callable[..., Choice | None]:
    def choose(
        texts: Instructions, rng: random.Random, phrasings: Phrasings, ratio: tuple[float, float]
    ) -> Choice | None:
        n = len(texts)
        count = mask_count(n, rng, ratio)
        lengths = [words(text, phrasings) for text in texts]
        if None in lengths:
            return None
        ranked = sorted(_all(n), key=lambda index: lengths[index - 1] or 0.0, reverse=longest)
        if lengths[ranked[count - 1] - 1] == lengths[ranked[count] - 1]:
            return None
        return _without(n, tuple(sorted(ranked[:count])), counted=True)

    return choose


def _parity_mask(parity: int) -> Callable[..., Choice]:
    def choose(
        texts: Instructions, rng: random.Random, phrasings: Phrasings, ratio: tuple[float, float]
    ) -> Choice:
        n = len(texts)
        return _without(n, tuple(index for index in _all(n) if index % 2 == parity))

    return choose


MASK: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("explicit", True, _explicit_mask),
        Rule("longest", False, _extremes(longest=True)),
        Rule("shortest", False, _extremes(longest=False)),
        Rule("odd", True, _parity_mask(1)),
        Rule("even", True, _parity_mask(0)),
    )
}

RULES: dict[str, dict[str, Rule]] = {"permute": PERMUTE, "maskout": MASK}
"""Strategy -> its rules by name."""
