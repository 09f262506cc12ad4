"""A function as a scorer: (prompts, completions, references) -> one number for each answer.

It runs in this process, without limits of time or memory, and what it raises is not caught: that is
for a program's own functions. One that the command line is to call, or that runs foreign code, is
`verifier:FILE.py:FUNCTION`, in a process of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from aligner.config.callables import DIGITS, PREFIX, describe, name_of
from aligner.errors import DataError

from .base import UNBOUNDED, Prompt, Range, Scorer, Scores, check_lengths

ScoreFunction = Callable[[Sequence[Prompt], Sequence[str], Sequence["str | None"]], Sequence[float]]
"""Prompts, answers and right answers (None where there is none) -> scores, all of length n."""


def as_scorer(scorer: Scorer | ScoreFunction) -> Scorer:
    """Return what has a `score` method as it is, and a function as a scorer."""
    if hasattr(scorer, "score"):
        return cast("Scorer", scorer)
    return FunctionScorer(scorer)


def scorer_text(scorer: Scorer) -> str:
    """Return what stands for a scorer of a program's own in recipes and records."""
    if isinstance(scorer, FunctionScorer):
        return describe(scorer.function)
    digest = hashlib.sha256(scorer.fingerprint().encode()).hexdigest()[:DIGITS]
    return f"{PREFIX}{name_of(type(scorer))} sha256:{digest}"


@dataclass(frozen=True)
class FunctionScorer:
    """Scores with a function of a program's own.

    `in_background`: it may be called in another thread while responses are sampled, as pays for one
    that waits for an endpoint; then it is called for some of the prompts at a time.
    """

    function: ScoreFunction
    range: Range = UNBOUNDED
    in_background: bool = False

    @property
    def name(self) -> str:
        """`module:name` of the function."""
        return name_of(self.function)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        """Call the function once, for all rows.

        Raises: DataError when it does not return one finite number for each answer.
        """
        check_lengths(prompts, completions, references)
        right = [None] * len(prompts) if references is None else references
        scores = [float(score) for score in self.function(prompts, completions, right)]
        if len(scores) != len(completions):
            raise DataError(
                f"{self.name} returned {len(scores)} scores for {len(completions)} answers",
                "return one number for each answer, in their order",
            )
        for row, score in enumerate(scores, start=1):
            if not math.isfinite(score):
                raise DataError(
                    f"{self.name} returned {score} for row {row}", "return a finite number"
                )
        return Scores(scores)

    def fingerprint(self) -> str:
        """The function's name and the digest of its source."""
        return describe(self.function)
