"""The kind `judge`: a language model that gives grades, and says which of two answers is better.

    kind: judge
    endpoint: {model: Qwen/Qwen3-8B, base_url: http://127.0.0.1:8000/v1, temperature: 0.0}
    rubric: ./rubric.txt        # what is judged, in place of ours
    scale: [1, 10]              # worst and best grade

The score is the judge's grade. A comparison is asked in both orders, since judges favour a place:
the result is the mean of two verdicts (1, 0.5 or 0), so 0.25 and 0.75 are one tie and one opinion,
and pairs for which the judge named another answer when the order changed are in `flips`; they count
as ties. Equal answers are a tie without asking. A right answer (`references`) is shown to the judge
where the row has one; comparisons have none.

How replies are read and kept, and what becomes of a row without a verdict, stands in
`judge_base.py`. Not here: several judges with votes (an `ensemble` of judges is that), and battles
with ratings.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from aligner.config.recipe import Endpoint
from aligner.endpoints.client import check_endpoint
from aligner.errors import RecipeError

from .base import Preferences, Prompt, Range, Scorer, Scores, check_lengths
from .card import Card
from .judge_base import JudgeBase, read_rubric, remarks_of
from .judge_prompts import (
    COMPARE_REMINDER,
    RUBRIC,
    compare_system,
    comparing,
    grade_in,
    grade_reminder,
    grade_system,
    grading,
    verdict_in,
)
from .judge_session import Question


class Judge(JudgeBase):
    """Asks a language model for grades and for comparisons."""

    def __init__(
        self, name: str, endpoint: Endpoint, rubric: str = RUBRIC, scale: Range = (1.0, 10.0)
    ) -> None:
        super().__init__(name, endpoint)
        self.rubric = rubric
        self.scale = scale

    @property
    def range(self) -> Range:
        """The scale of its grades."""
        return self.scale

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        """Ask for a grade of every answer. Raises: NoVerdict; EndpointError when the judge cannot
        be asked."""
        check_lengths(prompts, completions, references)
        known: Sequence[str | None] = [None] * len(prompts) if references is None else references
        read = functools.partial(grade_in, scale=self.scale)
        reminder = grade_reminder(self.scale)
        replies = self._session.ask(
            [
                Question(
                    grading(prompt, completion, reference, self.rubric, self.scale), read, reminder
                )
                for prompt, completion, reference in zip(prompts, completions, known)
            ]
        )
        grades = self._values({row: [reply] for row, reply in enumerate(replies)}, "grade")
        return Scores(
            [grades[row][0] for row in range(len(prompts))], remarks=remarks_of(enumerate(replies))
        )

    def prefer(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> Preferences:
        """Ask which answer is better, in both orders. Raises: as `score`."""
        assert len(prompts) == len(first) == len(second), (
            f"{len(prompts)} prompts, {len(first)} and {len(second)}"
        )
        asked = [row for row in range(len(prompts)) if first[row] != second[row]]
        questions = [
            Question(comparing(prompts[row], a, b, self.rubric), verdict_in, COMPARE_REMINDER)
            for row in asked
            for a, b in ((first[row], second[row]), (second[row], first[row]))
        ]
        replies = self._session.ask(questions)
        by_row = {row: replies[2 * place : 2 * place + 2] for place, row in enumerate(asked)}
        verdicts = self._values(by_row, "verdict")
        chances = [0.5] * len(prompts)
        for row, (as_a, as_b) in verdicts.items():
            chances[row] = (as_a + 1.0 - as_b) / 2.0
        flips = [row for row, (as_a, as_b) in verdicts.items() if as_a == as_b != 0.5]
        return Preferences(
            chances, flips, remarks_of((row, reply) for row in asked for reply in by_row[row])
        )

    def _made_of(self) -> list[Any]:
        return [
            self.scale,
            grade_system(self.rubric, self.scale),
            grade_reminder(self.scale),
            compare_system(self.rubric),
            COMPARE_REMINDER,
        ]


def make(card: Card) -> Scorer:
    """The scorer of a card of the kind `judge`. Asks nobody and loads nothing yet, but says what is
    missing."""
    assert card.endpoint is not None, "a card without an endpoint is refused when it is read"
    scale = (card.scale[0], card.scale[1])
    if card.range is not None and tuple(card.range) != scale:
        raise RecipeError(
            f"{card.name}: range is {card.range[0]:g} to {card.range[1]:g}, and scale "
            f"{scale[0]:g} to {scale[1]:g}",
            "the grades of a judge are its scores: drop range",
        )
    check_endpoint(card.endpoint)
    return Judge(
        card.name,
        card.endpoint,
        RUBRIC if card.rubric is None else read_rubric(card.rubric),
        scale,
    )
