"""The gold score of the toy world as a scorer: it works the right answer out from the prompt and needs no reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aligner.errors import DataError, Problem, RecipeError
from aligner.toy.tasks import gold_score

from .base import Prompt, Scorer, check_lengths


@dataclass(frozen=True, slots=True)
class ToyScorer:
    """`aligner.toy.gold_score`, row by row, in [0, 1]."""

    name: str = "toy"

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> list[float]:
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
                f"the toy gold score knows the toy world's prompts only; {len(problems)} of {len(prompts)} rows are others",
                "Use a `verifier:...` for your own data.",
                problems[:10],
            )
        return scores


def make(argument: str) -> Scorer:
    """Factory of the kind `toy`, which takes no argument."""
    if argument:
        raise RecipeError(f"the scorer `toy` takes no argument, found {argument!r}", "Write just `toy`.")
    return ToyScorer()
