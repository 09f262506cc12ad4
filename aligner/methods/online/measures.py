"""What a round's policy is worth, from its scored responses to held-out prompts: pure functions of
numbers, and the rules that choose the best round and end the loop. Imports no torch.

Prompts, not responses, are counted: the responses to one prompt are not independent. Intervals are
percentile bootstraps over prompts, 95%.

Legend: N prompts, S responses to each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aligner.methods.online.recipe import Stop

Floats = npt.NDArray[np.float64]
Scores = Sequence[Sequence[float | None]]
"""Of N prompts, the scores of S responses."""

RESAMPLES = 1000
COVERAGE = (2.5, 97.5)


def by_prompt(scores: Scores) -> Floats:
    """Return the mean score of each prompt (N,); NaN where no response has one."""
    means = []
    for row in scores:
        known = [score for score in row if score is not None]
        means.append(sum(known) / len(known) if known else np.nan)
    return np.asarray(means, dtype=np.float64)


def mean_and_error(values: Floats) -> tuple[float | None, float]:
    """Return the mean of the known values (N,), None where there is none, and its standard
    error."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None, 0.0
    error = float(known.std(ddof=1) / len(known) ** 0.5) if len(known) > 1 else 0.0
    return float(known.mean()), error


def kl_of_responses(
    policy: Sequence[Sequence[Sequence[float]]], start: Sequence[Sequence[Sequence[float]]]
) -> list[list[float]]:
    """Estimate KL(policy || start) by the policy's responses: nats of each (N, S).

    Both hold the log-probabilities of the sampled tokens (N, S, T). It is the sum of their
    differences (k1), whose mean is the KL; that of few responses may be slightly negative. The
    estimator that never is, r - 1 - ln r with r the start's probability over the policy's (k3), has
    less variance near the start; far from it one token can be worth more than all others.
    """
    found = []
    for ours, theirs in zip(policy, start, strict=True):
        pairs = zip(ours, theirs, strict=True)
        found.append([float(np.sum(np.subtract(mine, other))) for mine, other in pairs])
    return found


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often one policy's response scores above another's to the same prompt; ties count half.
    `low` and `high` are the ends of the interval."""

    value: float
    low: float
    high: float
    prompts: int


def win_rate(ours: Scores, theirs: Scores, seed: int) -> WinRate | None:
    """Compare every response of ours with every one of theirs to the same prompt (N, S); None where
    no prompt has scores of both."""
    rates = []
    for left, right in zip(ours, theirs, strict=True):
        known = [(a, b) for a in left if a is not None for b in right if b is not None]
        if known:
            rates.append(sum((a > b) + 0.5 * (a == b) for a, b in known) / len(known))
    if not rates:
        return None
    values = np.asarray(rates)
    random = np.random.default_rng(seed)
    draws = random.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), COVERAGE)
    return WinRate(float(values.mean()), float(low), float(high), len(values))


def proxy_accuracy(rewards: Scores, gold: Scores) -> tuple[float | None, int]:
    """Return how often the reward orders two responses to a prompt as gold does, ties of the reward
    counting half, and over how many pairs; pairs that tie by gold do not count."""
    right, count = 0.0, 0
    for of_reward, of_gold in zip(rewards, gold, strict=True):
        rows = list(zip(of_reward, of_gold))
        known = [(r, g) for r, g in rows if r is not None and g is not None]
        for place, (first, by_gold) in enumerate(known):
            for second, other in known[:place]:
                if by_gold != other:
                    count += 1
                    right += 0.5 if first == second else (first > second) == (by_gold > other)
    return (right / count if count else None), count


def distinct(texts: Sequence[str], size: int = 2) -> float:
    """Return the share of different n-grams of `size` words among all of them (distinct-n); 0 where
    there are none."""
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = text.split()
        grams += [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


# --- the loop -------------------------------------------------------------------------------------


def judged(measured: Mapping[str, Any]) -> float:
    """Return what a round is chosen by: gold on the validation prompts, or the reward where there
    is none."""
    part = measured["validation"]
    value = part["gold"] if part.get("gold") is not None else part["reward"]
    return float("-inf") if value is None else float(value)


def best_round(rounds: Sequence[Mapping[str, Any]]) -> int:
    """Return which round, from 1 on, is best. `rounds[0]` is the start, which is never chosen; of
    equal ones the first is."""
    values = list(map(judged, rounds[1:]))
    return 1 + max(range(len(values)), key=lambda place: (values[place], -place))


def why_stop(rounds: Sequence[Mapping[str, Any]], stop: Stop) -> str:
    """Say why no further round is started, or nothing. `rounds`: what the start and each round
    measured on the validation prompts."""
    start, now = rounds[0]["validation"], rounds[-1]["validation"]
    if stop.kl is not None and now["kl"] > stop.kl:
        return f"the policy is {now['kl']:.1f} nats a response from the start (stop.kl {stop.kl:g})"
    fallen = start["finished"] - now["finished"]
    if stop.eos_drop is not None and fallen > stop.eos_drop:
        return (
            f"{now['finished']:.0%} of the responses end by themselves, and at the start "
            f"{start['finished']:.0%} did (stop.eos_drop {stop.eos_drop:g})"
        )
    reward, gold = (rounds[-1]["changes"].get(name) for name in ("reward", "gold"))
    if stop.over_optimized and _is_sure(reward, 1) and _is_sure(gold, -1):
        return (
            f"the reward rose by {reward['mean']:.3g} and gold fell by {-gold['mean']:.3g}, both "
            "beyond chance: the reward is over-optimized (stop.over_optimized)"
        )
    return ""


BEYOND_CHANCE = 2.0
"""Standard errors that a change is away from 0 where it is taken for one."""


def change(now: Floats, before: Floats) -> dict[str, float] | None:
    """Return the mean over prompts of how much a score changed, and its standard error, from those
    of the same prompts (N,); None where fewer than two have both: one says nothing of chance."""
    changes = now - before
    if np.count_nonzero(~np.isnan(changes)) < 2:
        return None
    mean, error = mean_and_error(changes)
    assert mean is not None, "there are two"
    return {"mean": mean, "stderr": error}


def _is_sure(found: Mapping[str, float] | None, sign: int) -> bool:
    return found is not None and sign * found["mean"] > BEYOND_CHANCE * found["stderr"]
