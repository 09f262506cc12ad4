"""Sampled responses for the report of reinforcement learning, their segments coloured by reward.
Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FULL_COLOUR = 2.0
"""Size of a normalized reward that is shown in full colour: two standard deviations."""


def rollout_rows(rollouts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the page shows of `rollouts.json`."""
    return list(map(_row, rollouts))


def _row(one: dict[str, Any]) -> dict[str, Any]:
    scores = one["scores"].items()
    return {
        "prompt": one["prompt"],
        "response": one["response"],
        "scores": [(name, "none" if score is None else f"{score:.3g}") for name, score in scores],
        "segments": list(map(_segment, one.get("segments", []))),
    }


def _segment(segment: dict[str, Any]) -> dict[str, Any]:
    reward = segment["reward"]
    return {
        "text": segment["text"],
        "reward": f"{reward:+.2f}",
        "tone": "good" if reward >= 0 else "t6",
        "share": round(45 * min(1.0, abs(reward) / FULL_COLOUR)),
    }
