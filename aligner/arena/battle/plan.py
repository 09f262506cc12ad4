"""Who meets whom on which prompt: a sorted list, then in an order that the seed decides, so that a
run that is interrupted has judged a random part.

`adaptive.py` and `bracket.py` build on it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from typing import TYPE_CHECKING

from aligner.arena.battle.sheets import Answer, Item

if TYPE_CHECKING:
    from aligner.arena.battle.recipe import Arena

Answers = Mapping[str, Mapping[str, Answer]]
"""Contestant -> id of a prompt -> answer."""

Pair = tuple[str, str]
"""Two contestants; the first name sorts before the second."""


@dataclass(frozen=True, slots=True)
class Match:
    """Two answers to a prompt, to be judged in both orders; the name of `a` sorts before that of
    `b`."""

    item: Item
    a: Answer
    b: Answer

    @property
    def pair(self) -> Pair:
        """Who meets."""
        return self.a.model, self.b.model


def pairs_of(names: Iterable[str], target: str | None = None) -> list[Pair]:
    """Return all pairs, or those of the target with each other one."""
    pairs = combinations(sorted(names), 2)
    return [pair for pair in pairs if target is None or target in pair]


def matches(
    items: Sequence[Item], answers: Answers, pairs: Sequence[Pair], seed: int
) -> list[Match]:
    """Return the matches of pairs on prompts, in the order in which they are judged."""
    found = []
    for item in sorted(items, key=lambda item: item.id):
        for a, b in sorted(pairs):
            found.append(Match(item, answers[a][item.id], answers[b][item.id]))
    random.Random(seed).shuffle(found)
    return found


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """Return prompts in an order that the seed decides, whatever order they came in."""
    found = sorted(items, key=lambda item: item.id)
    random.Random(seed).shuffle(found)
    return found


def most_battles(arena: Arena, prompts: int) -> int:
    """Return how many battles a plan has at most, of one judge."""
    count = len(arena.contestants)
    if arena.plan in ("target", "bracket"):
        return (count - 1) * prompts
    return count * (count - 1) // 2 * prompts


def digest_of_answers(answers: Answers) -> str:
    """Return a hash of all answers."""
    lines = []
    for name in sorted(answers):
        for prompt, answer in sorted(answers[name].items()):
            lines.append(f"{name}\t{prompt}\t{answer.sha}")
    return sha256("\n".join(lines).encode()).hexdigest()
