"""The tables of `benchmarks.real.rlhf`, from what was seen at each step."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

SHOWN = 2
"""Steps that a line of the table averages over, since one has few answers."""
NATS = (0.5, 1.0, 2.0)
"""KL to the start, in nats a response, at which rewards are compared."""

Arms = dict[str, list[dict[str, Any]]]
"""Arm -> for each seed what `benchmarks.real.rlhf.read_arm` returns."""
KEYS = {"reward": 3, "perfect": 2, "kl": 2, "tokens": 1, "truncated": 2}
"""Column -> its decimals."""


def page(arms: Arms) -> str:
    """The curves, the held-out prompts, and rewards at the same KL."""
    known = {arm: seeds for arm, seeds in arms.items() if seeds}
    parts = [_curves(known), _held_out(known), _matched(known), _agreement(known)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _curves(arms: Arms) -> list[str]:
    lines = [
        f"Answers sampled in training, means over {SHOWN} steps and over seeds (each seed):",
        "",
    ]
    lines += _head(["arm", "steps", *KEYS])
    for arm, seeds in arms.items():
        for start in range(0, max(len(one["steps"]) for one in seeds), SHOWN):
            windows = [one["steps"][start : start + SHOWN] for one in seeds]
            rows = [row for row in windows if len(row) == SHOWN]
            if not rows:
                continue
            cells = []
            for key, decimals in KEYS.items():
                cells.append(cell([fmean(step[key] for step in row) for row in rows], decimals))
            lines.append(_row([arm, f"{start + 1} to {start + SHOWN}", *cells]))
    return lines


def _held_out(arms: Arms) -> list[str]:
    keys = [key for key in KEYS if key != "kl"]
    lines = ["Held-out prompts, one answer each, after so many steps:", ""]
    lines += _head(["arm", "steps", *keys])
    for arm, seeds in arms.items():
        asked = [line for one in seeds for line in one["held_out"]]
        for step in sorted({line["step"] for line in asked}):
            rows = [line for line in asked if line["step"] == step]
            cells = [cell([row[key] for row in rows], KEYS[key]) for key in keys]
            lines.append(_row([arm, str(step), *cells]))
    return lines


def _matched(arms: Arms) -> list[str]:
    lines = [
        f"Reward where the mean KL of {SHOWN} steps first passes a number of nats a response; "
    ]
    lines[0] += "a dash: not reached:"
    lines += ["", *_head(["arm", *(f"KL {nats:g}" for nats in NATS)])]
    for arm, seeds in arms.items():
        cells = [cell([reward_at(one["steps"], nats) for one in seeds], 3) for nats in NATS]
        lines.append(_row([arm, *cells]))
    return lines


def _agreement(arms: Arms) -> list[str]:
    """How far the reward model agrees with the program, in the answers of training."""
    found = []
    for arm, seeds in arms.items():
        every = [one["steps"] for one in seeds if "agreement" in one["steps"][0]]
        for part, take in (("first", slice(3)), ("last", slice(-3, None))):
            numbers = [[step["agreement"] for step in steps[take]] for steps in every]
            means = [fmean(row) for row in numbers if None not in row]
            if means:
                found.append(f"`{arm}`, {part} three steps: {cell(means, 2)}.")
    if not found:
        return []
    text = "Correlation within groups of the reward model's means with the program's scores"
    return [f"{text}: {' '.join(found)}"]


def reward_at(steps: Sequence[dict[str, Any]], nats: float) -> float | None:
    """The smoothed reward where the smoothed KL first reaches a number of nats; None if never."""
    for end in range(1, len(steps) + 1):
        window = steps[max(0, end - SHOWN) : end]
        if fmean(step["kl"] for step in window) >= nats:
            return fmean(step["reward"] for step in window)
    return None


def cell(values: Sequence[float | None], decimals: int) -> str:
    """The mean and each value; no mean where a value was never reached, which is a dash."""
    texts = ["-" if one is None else f"{one:.{decimals}f}" for one in values]
    known = [one for one in values if one is not None]
    if len(known) < len(values) or len(values) == 1:
        return ", ".join(texts)
    return f"{fmean(known):.{decimals}f} ({', '.join(texts)})"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), _row(["---"] * len(names))]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
