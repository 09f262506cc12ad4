"""A judge that errs on purpose, for trying things out: the scores of a scorer, stretched to 1 to
10, and what is said in `faults`.

    score = 1 + 9 (s - worst) / (best - worst)
            + noise * N(0, 1) + seat (for the first answer)
            + length * log2(its characters / those of the other one) + liking (for the family)

The noise follows from the game, so that the same game gets the same scores in every run, and its
other order other noise. Scores may leave 1 to 10. With `is_blind` the scorer is not asked, and the
middle of the scale takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from random import Random
from typing import Any

from aligner.arena.battle.scorer_judge import ScorerJudge
from aligner.arena.battle.sheets import Answer, BattleJudge, Judged, Judging, Sheet
from aligner.config.battles import Faults
from aligner.reward_models.catalogue import load_scorer

WORST, BEST = 1.0, 10.0
MIDDLE = (WORST + BEST) / 2
SEATS = ("first", "second")


class FaultyJudge:
    """Adds faults to what a scorer says. `scale`: its worst and its best score, both finite."""

    template_sha = ""

    def __init__(self, inner: BattleJudge, faults: Faults, scale: tuple[float, float]) -> None:
        assert faults.is_blind or all(map(math.isfinite, scale)), "the recipe's check has looked"
        self._inner, self._faults, self._scale = inner, faults, scale
        self.id = inner.id

    @property
    def rev(self) -> str:
        """A digest of the scorer and its faults."""
        return sha256(f"{self._inner.rev} {self._faults!r}".encode()).hexdigest()[:16]

    def judge(self, sheets: Sequence[Sheet]) -> Judging:
        """Have the scorer judge, and err."""
        if self._faults.is_blind:
            blank = Judged("ok", MIDDLE, MIDDLE)
            return Judging([self._erring(sheet, blank) for sheet in sheets])
        said = self._inner.judge(sheets)
        judged = [
            None if one is None else self._erring(sheet, one)
            for sheet, one in zip(sheets, said.judged)
        ]
        return Judging(judged, said.stopped)

    def usage(self) -> dict[str, Any]:
        """That of the scorer."""
        return self._inner.usage()

    def close(self) -> None:
        """Let go of the scorer."""
        self._inner.close()

    def _erring(self, sheet: Sheet, judged: Judged) -> Judged:
        if judged.score_first is None or judged.score_second is None:
            return judged
        game = (self.rev, sheet.item.id, sheet.first.sha, sheet.second.sha)
        answers = (sheet.first, sheet.second), (sheet.second, sheet.first)
        seen = (judged.score_first, judged.score_second)
        first, second = (
            self._stretched(score) + self._error(one, other, seat, (*game, seat))
            for score, (one, other), seat in zip(seen, answers, SEATS)
        )
        return replace(judged, score_first=first, score_second=second)

    def _stretched(self, score: float) -> float:
        if self._faults.is_blind:
            return MIDDLE
        worst, best = self._scale
        return WORST + (BEST - WORST) * (score - worst) / (best - worst)

    def _error(self, answer: Answer, other: Answer, seat: str, game: tuple[str, ...]) -> float:
        faults = self._faults
        found = faults.noise * Random("\n".join(game)).gauss(0.0, 1.0)
        found += faults.seat * (seat == SEATS[0])
        longer = max(1, len(answer.text)) / max(1, len(other.text))
        found += faults.length * math.log2(longer)
        is_family = bool(faults.family) and answer.model.startswith(faults.family)
        return found + faults.liking * is_family


def erring(judge: ScorerJudge, faults: Faults) -> FaultyJudge:
    """Return a scorer as a judge with faults."""
    scale = (0.0, 1.0)
    if not (faults.is_blind or judge.compares):
        scale = load_scorer(judge.spec).range
    return FaultyJudge(judge, faults, scale)
