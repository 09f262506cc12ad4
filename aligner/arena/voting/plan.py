"""Which pairs of answers a person is shown, and in which order.

Every pair of models on every prompt that both answered is shown once in an order that chance draws,
and when all were voted on, once more in the other. The pairs come in the same sequence for
everybody, so that votes of several people are about the same pairs however early they stop; which
answer stands first is drawn for each person.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import combinations

from aligner.arena.battle.sheets import Answer, Item, Sheet
from aligner.arena.voting.reading import Answered
from aligner.errors import DataError


@dataclass
class Plan:
    """`sheets`: what is shown, both orders of all pairs. `identical`, `empty`: pairs that no one
    needs to look at."""

    sheets: list[Sheet] = field(default_factory=list)
    identical: int = 0
    empty: int = 0

    @property
    def pairs(self) -> int:
        """How many pairs there are; each is shown twice."""
        return len(self.sheets) // 2


def make_plan(found: Answered, *, name: str, pairs: int | None = None, seed: int = 0) -> Plan:
    """Plan what `name` is shown, of at most so many `pairs`.

    Raises: DataError where no two models answered the same prompt.
    """
    plan = Plan()
    shown = []
    for item, first, second in _pairs(found):
        if first.text.strip() == second.text.strip():
            plan.identical += 1
        elif not (first.text.strip() and second.text.strip()):
            plan.empty += 1
        else:
            shown.append((item, first, second))
    if not shown:
        raise DataError(_nothing(plan), "give answers of two models to the same prompts")
    random.Random(seed).shuffle(shown)
    shown = shown[:pairs]
    own = random.Random(f"{seed} {name}")
    ordered = []
    for item, *answers in shown:
        own.shuffle(answers)
        ordered.append(Sheet(item, *answers))
    turned = [Sheet(sheet.item, sheet.second, sheet.first) for sheet in ordered]
    plan.sheets = [*ordered, *turned]
    return plan


def _pairs(found: Answered) -> Iterator[tuple[Item, Answer, Answer]]:
    """In an order that depends on neither files nor rows."""
    for key in sorted(found.items):
        answers = [found.answers[name].get(key) for name in sorted(found.answers)]
        for first, second in combinations([one for one in answers if one is not None], 2):
            yield found.items[key], first, second


def _nothing(plan: Plan) -> str:
    if plan.identical or plan.empty:
        return "there is nothing to vote on: all answers are identical or empty"
    return "no two models answered the same prompt"


def battle_key(sheet: Sheet, name: str) -> str:
    """The battle of a sheet with the votes of one person: the same for both orders."""
    return _digest(sheet.item.id, *_sorted(sheet), name)


def game_key(sheet: Sheet, name: str) -> str:
    """A sheet with the vote of one person."""
    return _digest(battle_key(sheet, name), sheet.first.model)


def sheet_key(sheet: Sheet) -> str:
    """A sheet, whoever votes on it."""
    return _digest(sheet.item.id, *_sorted(sheet), sheet.first.model)


def _sorted(sheet: Sheet) -> list[str]:
    """Both models and what they answered."""
    both = sorted((answer.model, answer.sha) for answer in (sheet.first, sheet.second))
    return [text for pair in both for text in pair]


def _digest(*parts: str) -> str:
    return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
