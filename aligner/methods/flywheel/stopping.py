"""Why rounds end early: what was lost is too little, or no more than chance, or teaches nothing.

`noise`: a second sample of the target beats the first one on some prompts, though neither is
better. Where the opponents beat it hardly more often than that, the losses are the judge's noise
(arXiv 2407.10627 has no such rule). The one share must be above the other at 95% confidence, by
the normal approximation of their difference, with prompts as what varies. It is asked where rows
are the target's losses: for `sft`, and pairs with `scope: target_loses`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aligner.arena.selection.contests import Contest
from aligner.arena.selection.summary import false_loss_rate, loss_rate
from aligner.methods.flywheel.recipe import Stop

ERRORS = 1.645
"""Standard errors of a one-sided test at 95%."""


def noise_of(
    contests: Sequence[Contest],
    itself: Sequence[Contest],
    target: str,
    again: str,
    rivals: Sequence[str],
    k: float,
) -> dict[str, Any]:
    """Return how often the target loses by `k`, to its rivals and to itself.

    A rate is a mean over battles; its standard error is that of the means of prompts.
    """
    lost, battles = loss_rate(contests, target, rivals, k)
    chance, prompts = false_loss_rate(itself, target, again, k)
    return {
        "loss_rate": lost,
        "loss_error": _error([_mean_loss(contest, target, rivals, k) for contest in contests]),
        "battles": battles,
        "false_loss_rate": chance,
        "false_loss_error": _error([_mean_loss(contest, target, [again], k) for contest in itself]),
        "prompts": prompts,
    }


def _mean_loss(contest: Contest, target: str, rivals: Sequence[str], k: float) -> float | None:
    return loss_rate([contest], target, rivals, k)[0]


def _error(values: Sequence[float | None]) -> float | None:
    """The standard error of a mean; None of fewer than two values."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    mean = sum(known) / len(known)
    variance = sum((value - mean) ** 2 for value in known) / (len(known) - 1)
    return math.sqrt(variance / len(known))


def why_not_train(rows: int, noise: Mapping[str, Any] | None, stop: Stop) -> str:
    """Return why a selection is not trained on, or nothing."""
    if rows < max(1, stop.min_rows):
        return f"{rows:,} rows were selected, fewer than stop.min_rows ({stop.min_rows:,})"
    if not stop.noise or noise is None:
        return ""
    lost, chance = noise["loss_rate"], noise["false_loss_rate"]
    errors = noise["loss_error"], noise["false_loss_error"]
    if lost is None or chance is None or errors[0] is None or errors[1] is None:
        return ""
    lead, error = lost - chance, math.hypot(errors[0], errors[1])
    if lead > ERRORS * error:
        return ""
    return (
        f"the target loses {lost:.1%} of its battles, and {chance:.1%} of those against a second "
        f"sample of itself; at 95% confidence that is no more than chance, which may add "
        f"{ERRORS * error:.1%}"
    )


def why_no_gain(gain: Mapping[str, float | None], stop: Stop) -> str:
    """Return why no further round follows one with this gain, or nothing."""
    value, low = gain["value"], gain["low"]
    if not stop.gain or value is None:
        return ""
    if value > 0 and (low is None or low > 0):
        return ""
    ends = "" if low is None else f" (95%: {low:+.0f} to {gain['high']:+.0f})"
    return f"the round's best model is rated {value:+.0f} above the last one's{ends}"
