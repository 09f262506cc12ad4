"""Battles in Python: answers of one's own, a judge that is a function, and ratings with intervals.

    python examples/battles.py

No model and no network: three contestants add numbers, each as well as it can, and the judge knows
what is right. The log is a file of games that `aligner arena rate` and `diagnose` read.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner.arena.battle.log import GAMES, GameLog
from aligner.arena.battle.merged import votes_of
from aligner.arena.battle.plan import matches, pairs_of
from aligner.arena.battle.play import Table, play
from aligner.arena.battle.sheets import Answer, Item, Judged, Judging, Sheet
from aligner.arena.rating import Settings, rate
from aligner.config.battles import Rating

RIGHT = {"novice": 0.3, "clerk": 0.6, "expert": 0.9}
"""Contestant -> how often it is right."""


class Teacher:
    """A judge: 10 for the right answer, 1 for another."""

    id, rev, template_sha = "teacher", "1", ""

    def judge(self, sheets: Sequence[Sheet]) -> Judging:
        """Judge games; None in place of a verdict would mean that it is to be asked for again."""
        return Judging([self._judged(sheet) for sheet in sheets])

    def _judged(self, sheet: Sheet) -> Judged:
        scores = [10.0 if one.text == sheet.item.reference else 1.0 for one in sheet.answers]
        return Judged("ok", *scores)

    def usage(self) -> dict[str, Any]:
        """Nobody was paid."""
        return {}

    def close(self) -> None:
        """Nothing is open."""


def main() -> None:
    draw = random.Random(0)
    sums = [(draw.randrange(100), draw.randrange(100)) for _ in range(200)]
    items = [Item(f"sum-{n}", f"{a}+{b}", reference=str(a + b)) for n, (a, b) in enumerate(sums)]
    answers: dict[str, dict[str, Answer]] = {}
    for name, share in RIGHT.items():
        answers[name] = {}
        for item in items:
            text = item.reference if draw.random() < share else str(draw.randrange(200))
            answers[name][item.id] = Answer(name, str(text))
    with tempfile.TemporaryDirectory() as folder:
        table = Table([Teacher()], GameLog(Path(folder) / GAMES))
        plan = matches(items, answers, pairs_of(answers), seed=0)
        play(plan, table)
        battles = [games for match in plan for games in table.games(match)]
    ratings = rate(votes_of(battles, Rating()), Settings(anchor="novice"))
    for place, name in enumerate(ratings.models):
        low, high = ratings.low[place], ratings.high[place]
        print(f"{name:<8}{ratings.rating[place]:7.0f}   {low:.0f} to {high:.0f}")


if __name__ == "__main__":
    main()
