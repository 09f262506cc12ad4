"""How many rows a mosaic holds: distributions of k, as random draws and as exact probabilities.

`uniform` is the authors' default. The others put their mass near the largest k: X is drawn until it
lies in [0, K), and k = K - floor(X), with X exponential (rate 1), Lomax with shape 1 minus 1
(`pareto`), log-normal (0, 1) or logistic with location 0 and scale 2. `fix_max` always gives K;
`max_length` takes as many as fit and draws nothing.

Different from the authors' code: there X of `pareto` may also lie in [-1, 0), which int() makes 0.
Of ten at most, 73% of its draws are ten there, and 40% here (`compat: released` draws as they do).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

CDF: dict[str, Callable[[float], float]] = {
    "exp": lambda x: 1.0 - math.exp(-x),
    "pareto": lambda x: 1.0 - 1.0 / (2.0 + x),  # P(Lomax(1) - 1 <= x)
    "lognormal": lambda x: 0.5 * (1.0 + math.erf(math.log(x) / math.sqrt(2.0))) if x > 0 else 0.0,
    "logistic2": lambda x: 1.0 / (1.0 + math.exp(-x / 2.0)),
}
"""Distribution of X, for x >= 0."""


def probabilities(name: str, largest: int, smallest: int = 1) -> dict[int, float]:
    """Return k -> its probability, for k from `smallest` to `largest`; those below `smallest` are
    drawn again."""
    assert name in ("uniform", "fix_max", *CDF), name
    if name == "fix_max":
        return {largest: 1.0}
    if name == "uniform":
        weights = dict.fromkeys(range(smallest, largest + 1), 1.0)
    else:
        cdf = CDF[name]
        weights = {largest - x: cdf(x + 1) - cdf(x) for x in range(largest - smallest, -1, -1)}
    total = sum(weights.values())
    return {k: weight / total for k, weight in weights.items()}


def drawer(name: str, largest: int, smallest: int = 1) -> Callable[[random.Random], int]:
    """Return a function that draws k; it takes one number from the generator for each draw."""
    table = probabilities(name, largest, smallest)
    ks, bounds, total = list(table), [], 0.0
    for probability in table.values():
        total += probability
        bounds.append(total)
    bounds[-1] = 1.0

    def draw(rng: random.Random) -> int:
        u = rng.random()
        return next(k for k, bound in zip(ks, bounds) if u < bound)

    return draw
