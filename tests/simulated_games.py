"""Logs of games whose judges are known: what they look at besides the quality of answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aligner.arena.merging import Played

Games = list[tuple[str, Played]]


def simulate_games(
    models: Sequence[str],
    prompts: int,
    *,
    judge: str = "judge",
    seed: int = 0,
    seat: float = 0.0,
    length: float = 0.0,
    own: str | None = None,
    liking: float = 0.0,
    noise: float = 1.0,
    quality: Sequence[float] | None = None,
    beats: Sequence[tuple[str, str]] = (),
) -> Games:
    """Every pair on every prompt in both orders. The judge's score is quality, which varies by
    prompt and is the same for every judge, and `noise`; `seat` and `length` move it (the latter
    by the difference in logarithms), `liking` for models whose name starts with `own`. In
    `beats` the first is much better whenever it meets the second."""
    world, rng = np.random.default_rng(99), np.random.default_rng(seed)
    games: Games = []
    for prompt in range(prompts):
        good = 5 + np.array(quality or [0.0] * len(models)) + world.normal(0, 1, len(models))
        long = np.round(300 * world.lognormal(0, 0.5, len(models)))
        for one, first in enumerate(models):
            for two, second in enumerate(models):
                if one == two:
                    continue
                scores = good[[one, two]] + rng.normal(0, noise, 2)
                scores += [seat + length * np.log(long[one] / long[two]), 0.0]
                scores += [liking * bool(own and name.startswith(own)) for name in (first, second)]
                scores += [3.0 * (pair in beats) for pair in ((first, second), (second, first))]
                pair = "-".join(sorted((first, second)))
                styles = ({"length": long[one]}, {"length": long[two]})
                played = Played(first, second, f"p{prompt}", *scores, "", *styles, judge=judge)
                games.append((f"{prompt} {pair}", played))
    return games


def played(
    first: str, second: str, prompt: str, one: float | None, two: float | None, **more: object
) -> tuple[str, Played]:
    """A game by hand, in the battle of its two models on its prompt."""
    battle = f"{prompt} {'-'.join(sorted((first, second)))}"
    return battle, Played(first, second, prompt, one, two, **{"judge": "j", **more})  # type: ignore[arg-type]
