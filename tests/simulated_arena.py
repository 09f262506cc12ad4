"""Battles whose truth is known: models of given strength, answers that are better or worse by
prompt, and a judge that prefers a seat or length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aligner.arena.votes import VoteBuilder, Votes


def simulate(
    strengths: Sequence[float],
    prompts: int,
    *,
    seed: int = 0,
    by_prompt: float = 0.0,
    seat: float = 0.0,
    length: float = 0.0,
    tie_below: float = 0.0,
    lengths: Sequence[float] | None = None,
) -> Votes:
    """Every pair on every prompt, in both orders. `by_prompt`: how much the quality of a model's
    answers varies from prompt to prompt, in logits; `lengths`: how long each model writes."""
    rng = np.random.default_rng(seed)
    count = len(strengths)
    builder = VoteBuilder()
    for prompt in range(prompts):
        quality = np.asarray(strengths) + rng.normal(0, by_prompt, count)
        long = np.round(np.asarray(lengths or [200.0] * count) * rng.lognormal(0, 0.5, count)) + 1
        for first in range(count):
            for second in range(count):
                if first == second:
                    continue
                relative = (long[first] - long[second]) / (long[first] + long[second])
                odds = quality[first] - quality[second] + seat + length * relative
                outcome = float(rng.random() < 1 / (1 + np.exp(-odds)))
                if rng.random() < tie_below:
                    outcome = 0.5
                builder.add(
                    f"m{first}",
                    f"m{second}",
                    f"p{prompt:05}",
                    outcome,
                    category="even" if prompt % 2 == 0 else "odd",
                    seat=1.0,
                    styles=({"length": long[first]}, {"length": long[second]}),
                )
    return builder.votes()


def votes_of(*rows: tuple[str, str, float]) -> Votes:
    """Votes of (a, b, outcome), each on a prompt of its own."""
    builder = VoteBuilder()
    for number, (a, b, outcome) in enumerate(rows):
        builder.add(a, b, f"p{number:05}", outcome, seat=1.0)
    return builder.votes()
