"""The tables of `benchmarks.effects.rlhf`, from what was seen at each iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from statistics import fmean
from typing import Any

SMOOTH = 5
"""Iterations that are averaged over, since one has few responses."""

Seen = dict[str, Any]
Read = Callable[[Seen], float | None]
Columns = dict[str, tuple[Read, int]]
"""Header -> how it is read, and its decimals."""


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
    """The correlation at iteration 0."""
    found: float = seen["correlation"][0]
    return found


def early_correlation(seen: Seen) -> float:
    """The mean over the first iterations."""
    return fmean(seen["correlation"][:SMOOTH])


def tokens_to(quality: float) -> Read:
    """How many thousand tokens were sampled until the smoothed quality is reached."""

    def read(seen: Seen) -> float | None:
        pairs = zip(accumulate(seen["sampled"]), smoothed(seen["quality"]))
        return next((tokens / 1000 for tokens, value in pairs if value >= quality), None)

    return read


def quality_after(thousands: float) -> Read:
    """The smoothed quality once so many thousand tokens are sampled."""

    def read(seen: Seen) -> float | None:
        pairs = zip(accumulate(seen["sampled"]), smoothed(seen["quality"]))
        return next((value for tokens, value in pairs if tokens >= 1000 * thousands), None)

    return read


def columns(qualities: Sequence[float], nats: Sequence[float]) -> Columns:
    """The columns of training to the end."""
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


def by_tokens(qualities: Sequence[float], thousands: Sequence[float]) -> Columns:
    """The columns of what sampling costs."""
    return {
        "correlation, first 5": (early_correlation, 2),
        "tokens of an iteration": (lambda seen: fmean(seen["sampled"]), 0),
        **{f"thousand tokens to {one:g}": (tokens_to(one), 0) for one in qualities},
        **{f"quality after {one:g} thousand": (quality_after(one), 3) for one in thousands},
    }


SHORT: Columns = {
    "correlation": (correlation, 2),
    "quality, end": (last("quality"), 3),
    "KL, end": (last("kl"), 2),
    "words": (last("words"), 1),
    "letters of a word": (last("word_length"), 2),
    "cut off": (last("truncated"), 2),
    "malformed": (last("malformed"), 2),
}
LONG = columns((0.1, 0.2), (1.0, 3.0))
TABLES: tuple[tuple[str, str, Columns], ...] = (
    ("learned", "Learned reward models, 96 responses an iteration", LONG),
    (
        "learned",
        "The same by sampled tokens, those that were sampled on from cuts among them",
        by_tokens((0.1, 0.2), (40, 80, 100)),
    ),
    ("oracle", "True quality as the reward, 12 responses an iteration", LONG),
    ("oracle", "The same by sampled tokens", by_tokens((0.1, 0.2), (10, 20, 30))),
    ("planted", "A nuisance planted in the segment model's values", SHORT),
    ("settings", "Interpolation and aggregate", SHORT),
)
"""Part, title, columns."""


def tables(results: dict[str, Any]) -> list[str]:
    """The tables of the parts that were run, a line for each arm; cells are the mean over seeds
    and, in brackets, each seed."""
    lines: list[str] = []
    for part, title, reads in TABLES:
        if part in results:
            lines += ["", *_table(title, results[part], reads)]
    if "adapters" in results:
        lines += ["", *_adapters(results["adapters"])]
    return lines[1:]


def _adapters(arms: dict[str, Any]) -> list[str]:
    """Gold scores before and after, seed by seed."""
    seeds = sorted(set(chain.from_iterable(arms.values())), key=int)
    lines = [f"Gold score of the toy world, before -> after; seeds {', '.join(seeds)}:", ""]
    lines += ["| arm | greedy | sampled |", "| --- | --- | --- |"]
    for name, by_seed in arms.items():
        cells = []
        for place in range(2):
            pairs = [(one["before"][place], one["after"][place]) for one in by_seed.values()]
            cells.append(", ".join(f"{before:.3f} -> {after:.3f}" for before, after in pairs))
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines


def _table(title: str, arms: dict[str, Any], reads: Columns) -> list[str]:
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
