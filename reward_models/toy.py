"""The gold score of the toy world as a scorer: it works the right answer out from the prompt and
needs no reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aligner.errors import DataError, Problem
from aligner.toy.tasks import gold_score

from .base import SHARE, Prompt, Range, Scorer, Scores, check_lengths
from .card import Card


@dataclass(frozen=True, slots=True)
class ToyScorer:
    """`aligner.toy.tasks.gold_score`, row by row, in [0, 1]."""

    name: str = "toy"
    range: Range = SHARE

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        check_lengths(prompts, completions, references)
        scores: list[float] = []
        problems: list[Problem] = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions), start=1):
            try:
                scores.append(gold_score(prompt, completion))
            except DataError as error:
                problems.append(Problem(error.message, where=f"row {row}"))
        if problems:
            raise DataError(
                f"the toy gold score knows the toy world's prompts only; {len(problems)} of "
                f"{len(prompts)} rows are others",
                "use a `verifier:...` for your own data",
                problems[:10],
            )
        return Scores(scores)

    def fingerprint(self) -> str:
        """Its name: the score is fixed."""
        return self.name


def make(card: Card) -> Scorer:
    """The scorer of a card of the kind `toy`, which has nothing to say."""
    return ToyScorer()
