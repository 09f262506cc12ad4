"""The tables of `benchmarks.effects.rlhf`, from what was seen at each iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

SMOOTH = 5
"""Iterations that are averaged over, since one has few responses."""

Seen = dict[str, Any]
Read = Callable[[Seen], float | None]


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, `SMOOTH` in all."""
    return [fmean(values[max(0, place + 1 - SMOOTH) : place + 1]) for place in range(len(values))]


def iterations_to(quality: float) -> Read:
    """The first iteration, from 1, at which the smoothed quality is reached."""

    def read(seen: Seen) -> float | None:
        found = smoothed(seen["quality"])
        return next((n for n, value in enumerate(found, 1) if value >= quality), None)

    return read


def quality_at(kl: float) -> Read:
    """The smoothed quality where the smoothed KL first passes a number of nats."""

    def read(seen: Seen) -> float | None:
        pairs = zip(smoothed(seen["kl"]), smoothed(seen["quality"]))
        return next((value for nats, value in pairs if nats >= kl), None)

    return read


def last(key: str) -> Read:
    """The mean over the last iterations."""
    return lambda seen: fmean(seen[key][-SMOOTH:])


def correlation(seen: Seen) -> float:
    """What `benchmarks.effects.rlhf.correlation` found."""
    found: float = seen["correlation"]
    return found


def columns(qualities: Sequence[float], nats: Sequence[float]) -> dict[str, tuple[Read, int]]:
    """The columns of training to the end: header -> how it is read, and its decimals."""
    return {
        "correlation": (correlation, 2),
        **{f"iterations to {one:g}": (iterations_to(one), 0) for one in qualities},
        "quality, end": (last("quality"), 3),
        "KL, end": (last("kl"), 2),
        **{f"quality at KL {one:g}": (quality_at(one), 3) for one in nats},
        "tokens": (last("tokens"), 1),
        "words": (last("words"), 1),
        "malformed": (last("malformed"), 2),
    }


SHORT: dict[str, tuple[Read, int]] = {
    "correlation": (correlation, 2),
    "quality, end": (last("quality"), 3),
    "KL, end": (last("kl"), 2),
    "words": (last("words"), 1),
    "letters of a word": (last("word_length"), 2),
    "cut off": (last("truncated"), 2),
    "malformed": (last("malformed"), 2),
}
PARTS: dict[str, tuple[str, dict[str, tuple[Read, int]]]] = {
    "learned": (
        "Learned reward models, 96 responses an iteration",
        columns((0.1, 0.2), (1.0, 3.0)),
    ),
    "oracle": (
        "True quality as the reward, 12 responses an iteration",
        columns((0.1, 0.2), (1.0, 3.0)),
    ),
    "planted": ("A nuisance planted in the segment model's values", SHORT),
    "settings": ("Interpolation and aggregate", SHORT),
}


def tables(results: dict[str, Any]) -> list[str]:
    """A table for each part that was run, a line for each arm; cells are the mean over seeds and,
    in brackets, each seed."""
    lines: list[str] = []
    for part, (title, reads) in PARTS.items():
        if part in results:
            lines += ["", *_table(title, results[part], reads)]
    return lines[1:]


def _table(title: str, arms: dict[str, Any], reads: dict[str, tuple[Read, int]]) -> list[str]:
    seeds = sorted(set(chain.from_iterable(arms.values())), key=int)
    count = len(next(iter(next(iter(arms.values())).values()))["quality"])
    lines = [f"{title}; {count} iterations, seeds {', '.join(seeds)}:", ""]
    lines += ["| arm | " + " | ".join(reads) + " |", "| --- |" + " --- |" * len(reads)]
    for name, by_seed in arms.items():
        cells = []
        for read, decimals in reads.values():
            cells.append(_cell([read(by_seed[seed]) for seed in by_seed], decimals))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(values: Sequence[float | None], decimals: int) -> str:
    """The mean and each value; no mean where a value was never reached, which is a dash."""
    texts = ["-" if one is None else f"{one:.{decimals}f}" for one in values]
    known = [one for one in values if one is not None]
    if len(known) < len(values) or len(values) == 1:
        return ", ".join(texts)
    return f"{fmean(known):.{decimals}f} ({', '.join(texts)})"
