"""What verifiers share: a rule that judges one row after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .base import SHARE, Prompt, Range, Scores, check_lengths, required_references

Judged = tuple[float, str]
"""The score of a row, and which limit stopped what judged it; empty where none did."""


class Verifier:
    """A scorer that follows a rule. A kind of it says `judge`, or `judge_all`.

    `needs_references`: a row without a right answer is an error.
    """

    range: Range = SHARE
    needs_references = False
    in_background = True
    rule = ""
    """The fingerprint of a rule that is fixed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        """Judge each answer; see `Scorer.score`. A remark says which limit stopped a row."""
        check_lengths(prompts, completions, references)
        known = [None] * len(prompts) if references is None else references
        if self.needs_references:
            known = required_references(self.name, references, len(prompts))
        judged = list(self.judge_all(prompts, completions, known))
        remarks = {
            row: f"scored as failed: {stopped}"
            for row, (_, stopped) in enumerate(judged)
            if stopped
        }
        return Scores((value for value, _ in judged), remarks=remarks)

    def judge_all(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None],
    ) -> Iterable[Judged]:
        """Judge all rows of a call."""
        for row, columns in enumerate(zip(prompts, completions, references), start=1):
            yield self.judge(row, *columns)

    def judge(self, row: int, prompt: Prompt, completion: str, reference: str | None) -> Judged:
        """Judge a row, counted from 1. Raises: DataError that names it, if it cannot be judged."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """What decides the scores."""
        return self.rule
