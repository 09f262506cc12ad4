"""The win rate of a contestant, with its interval by prompt, and the gate that stands on it.

A win counts 1, a tie 1/2, and the rate is the mean over battles. Prompts are drawn again, with all
their battles. The gate closes where the upper end of the one-sided interval is below what is asked
for: then the contestant is shown to be worse. What passes is not shown to be worse; it is not shown
to be better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aligner.arena.records import Battle
from aligner.arena.resampling import draw
from aligner.errors import DataError, GateError

GATE_RESAMPLES = 10_000
AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class WinRate:
    """A share with the ends of its 95% interval; None where there is none."""

    rate: float | None
    low: float | None
    high: float | None
    wins: int
    ties: int
    losses: int
    prompts: int

    def to_json(self) -> dict[str, Any]:
        """Return it for a summary."""
        return asdict(self)


def win_rate_of(
    battles: Sequence[Battle], target: str, resamples: int, seed: int, coverage: float = 0.95
) -> WinRate:
    """Return the win rate of a contestant over its battles."""
    won, prompts = _outcomes(battles, target)
    counts = {value: int((won == value).sum()) for value in (1.0, 0.5, 0.0)}
    names = sorted(set(prompts))
    figures = (*counts.values(), len(names))
    if not len(won):
        return WinRate(None, None, None, *figures)
    drawn = _drawn(won, prompts, resamples, seed)
    if drawn is None:
        return WinRate(float(won.mean()), None, None, *figures)
    tail = (1.0 - coverage) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return WinRate(float(won.mean()), float(low), float(high), *figures)


def upper_end(battles: Sequence[Battle], target: str, confidence: float, seed: int) -> float | None:
    """Return the upper end of the one-sided interval of a win rate; None for fewer than two
    prompts. It is never below what n lost prompts leave open, 1 - (1 - confidence)^(1/n), of which
    resamples of lost prompts know nothing."""
    won, prompts = _outcomes(battles, target)
    drawn = _drawn(won, prompts, GATE_RESAMPLES, seed)
    if drawn is None:
        return None
    unseen = 1.0 - (1.0 - confidence) ** (1.0 / len(set(prompts)))
    return float(max(np.quantile(drawn, confidence), min(1.0, unseen)))


def gate(
    battles: Sequence[Battle], target: str, fail_below: float, confidence: float, seed: int
) -> dict[str, Any]:
    """Return the numbers of a gate.

    Raises: DataError where there are not two prompts to compute an interval from.
    """
    mine = [battle for battle in battles if target in (battle.model_a, battle.model_b)]
    upper = upper_end(mine, target, confidence, seed)
    if upper is None:
        raise DataError(
            f"--fail-below needs battles of {target} on two prompts at least", "give more prompts"
        )
    rate = win_rate_of(mine, target, 0, seed)
    return {
        "target": target,
        "fail_below": fail_below,
        "confidence": confidence,
        "win_rate": rate.rate,
        "upper": upper,
        "prompts": rate.prompts,
        "battles": len(mine),
        "passed": upper >= fail_below,
    }


def refuse_closed(found: dict[str, Any]) -> None:
    """Raise GateError where a gate is closed."""
    if not found["passed"]:
        raise GateError(
            f"{found['target']} is worse: it wins {found['win_rate']:.1%}, and at most "
            f"{found['upper']:.1%} at {found['confidence']:.0%} confidence, below "
            f"{found['fail_below']:.1%}",
            "see the report for the prompts that it loses",
        )


def _outcomes(battles: Sequence[Battle], target: str) -> tuple[np.ndarray, list[str]]:
    """1, 1/2 or 0 of each battle from the target's side, and its prompt."""
    values, prompts = [], []
    for battle in battles:
        side = "model_a" if battle.model_a == target else "model_b"
        values.append(0.5 if battle.winner == "tie" else float(battle.winner == side))
        prompts.append(battle.prompt_id)
    return np.array(values, dtype=np.float64), prompts


def _drawn(won: np.ndarray, prompts: Sequence[str], resamples: int, seed: int) -> np.ndarray | None:
    """The mean of each resample of prompts; None where there is nothing to draw."""
    names = {name: number for number, name in enumerate(sorted(set(prompts)))}
    if len(names) < 2 or resamples < 1:
        return None
    numbers = np.array([names[prompt] for prompt in prompts])
    sums = np.stack([np.bincount(numbers, won), np.bincount(numbers)], axis=1)
    random, found = np.random.default_rng(seed), []
    for start in range(0, resamples, AT_ONCE):
        times = draw(len(names), min(AT_ONCE, resamples - start), random)
        found.append(times @ sums)
    total, count = np.concatenate(found).T
    shares: np.ndarray = total / count
    return shares
