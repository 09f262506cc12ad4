"""Compare two models on the same rows: the difference of each number, its interval, and whether
chance would do.

Rows are paired, so what is hard for both of them falls out of the difference. The interval is that
of a paired bootstrap: groups of rows are drawn for both models at once. The p-value is that of a
paired permutation test: were the two alike, each group's numbers could as well be the other's, and
the share of such exchanges that part them as far as they are apart is the p-value. With few groups
every exchange is looked at, otherwise ten thousand drawn ones. Beside it stands the sign test over
groups, exact: how often each is ahead, whatever by (McNemar's test where a row is right or wrong).

Nothing is corrected for looking at several numbers at once.

Legend: G groups, R draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from aligner.evaluation.bootstrap import Floats
from aligner.evaluation.figures import MOST_NUMBERS, Figure, Figures, draws, ends

PERMUTATIONS = 10_000
MOST_EXACT = 13
"""Groups up to which every exchange is looked at: 8,192 of them."""

ROUNDING = 1e-12
"""Share by which two differences may differ and count as the same."""

Record = dict[str, Any]


def compare(mine: Figures, yours: Figures, *, resamples: int = 1000, seed: int = 0) -> Record:
    """Return the comparison of each number that both have, by name: mine less yours."""
    assert np.array_equal(mine.groups, yours.groups), "the same rows"
    return {
        name: compare_figures(figure, yours.named[name], mine, resamples=resamples, seed=seed)
        for name, figure in mine.named.items()
        if name in yours.named and not figure.repeats
    }


def compare_figures(
    mine: Figure, yours: Figure, rows: Figures, *, resamples: int, seed: int
) -> Record:
    """Return one comparison: both values, their difference, its interval, and what chance would
    do."""
    one, other = (np.stack(figure.by_group(rows.groups)) for figure in (mine, yours))
    count = one.shape[1]
    drawn = [
        mine.of(*(one @ times_RG.T)) - yours.of(*(other @ times_RG.T))
        for times_RG in draws(count, resamples, seed)
    ]
    each = mine.of(*one) - yours.of(*other)
    ahead, behind = int((each > 0).sum()), int((each < 0).sum())
    return {
        "value": mine.value,
        "other": yours.value,
        "difference": mine.value - yours.value,
        **ends(drawn),
        "p_value": _permutation(mine, one, other, seed) if resamples and count > 1 else None,
        "groups": count,
        "ahead": ahead,
        "behind": behind,
        "equal": count - ahead - behind,
        "sign_test": sign_test(ahead, behind),
        "better": mine.better,
    }


def _permutation(figure: Figure, one: Floats, other: Floats, seed: int) -> float:
    """The two-sided p-value of the difference when groups are exchanged between the two.

    `one` and `other` (2, G): both sums of each group.
    """
    middle, half = (one + other).sum(axis=1) / 2.0, (one - other) / 2.0

    def differences(signs_RG: Floats) -> Floats:
        apart = half @ signs_RG.T
        left, right = middle[:, None] + apart, middle[:, None] - apart
        return figure.of(*left) - figure.of(*right)

    count = one.shape[1]
    found = abs(differences(np.ones((1, count)))[0])
    limit = found * (1.0 - ROUNDING)
    exact = count <= MOST_EXACT
    total = as_far = 0
    for signs_RG in _all_signs(count) if exact else _drawn_signs(count, seed):
        as_far += int((np.abs(differences(signs_RG)) >= limit).sum())
        total += len(signs_RG)
    return as_far / total if exact else (as_far + 1) / (total + 1)


def _all_signs(count: int) -> Iterator[Floats]:
    numbers = np.arange(2**count)[:, None] >> np.arange(count)
    yield (1 - 2 * (numbers & 1)).astype(np.float64)


def _drawn_signs(count: int, seed: int) -> Iterator[Floats]:
    random = np.random.default_rng(seed)
    at_once = max(1, MOST_NUMBERS // count)
    for start in range(0, PERMUTATIONS, at_once):
        rows = min(at_once, PERMUTATIONS - start)
        yield (1 - 2 * random.integers(2, size=(rows, count))).astype(np.float64)


def sign_test(ahead: int, behind: int) -> float:
    """Return the two-sided p-value of being ahead so often, were each as likely as the other.

    The rarer of both and everything rarer still, counted twice, at most 1.
    """
    total, rarer = ahead + behind, min(ahead, behind)
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        for k in range(rarer + 1)
    ]
    return min(1.0, 2.0 * math.fsum(math.exp(log - total * math.log(2.0)) for log in logs))


SURE = 0.05


def in_words(name: str, found: Record, who: str, other: str) -> str:
    """Return what a comparison says, as a sentence."""
    p_value, difference = found["p_value"], found["difference"]
    if p_value is None:
        return f"{name}: nothing is said about chance"
    chance = f"p = {p_value:.2g}" if p_value >= 0.001 else "p < 0.001"
    if p_value > SURE:
        return f"{name}: no difference is shown ({chance})"
    more = "higher" if difference > 0 else "lower"
    verdict = {1: "better", -1: "worse", 0: ""}[int(math.copysign(1, difference)) * found["better"]]
    judged = f"{verdict}, {more}" if verdict else more
    return f"{name}: {who} is {judged} than {other} ({chance})"
