"""Whether a verifier accepts the winner's answer to a prompt."""

from __future__ import annotations

from aligner.arena.selection.contests import Contest
from aligner.arena.selection.rules import Accepts

PASSED = 1.0
"""Least score of an answer that is accepted."""


def accepts_of(spec: str | None) -> Accepts:
    """Return what asks a verifier about answers; without one, all are accepted.

    Raises: RecipeError where there is no such verifier.
    """
    if spec is None:
        return lambda contest, winner: True
    from aligner.reward_models.catalogue import load_scorer

    scorer = load_scorer(spec)

    def accepts(contest: Contest, winner: str) -> bool:
        item, text = contest.item, contest.answers[winner].text
        return scorer.score([item.prompt], [text], [item.reference])[0] >= PASSED

    return accepts
