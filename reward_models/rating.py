"""The kind `rating`: a language model that gives one answer up to five points, one for each of five
criteria (Self-Rewarding Language Models, arXiv 2401.10020, with a prompt of our own).

    kind: rating
    endpoint: {model: Qwen/Qwen3-8B, base_url: http://127.0.0.1:8000/v1, temperature: 0.7}
    samples: 3                  # the mean of three ratings
    rubric: ./criteria.txt      # five criteria in place of ours

The score is the mean of `samples` ratings, each a request of its own, in [0, 5]. It rates single
answers and compares none (`judge` does), so it goes wherever a score is wanted: `aligner score`,
`rlhf`, `online`. How it is framed, read, kept and paid stands in `judge_base.py`. Of several
ratings those count that could be read; a row without any has no score. A row that has one is never
asked again, so that its score stays.

Where we differ from the paper: a reply without usable points is asked for once more, with a
reminder; points are whole numbers; a right answer is shown where the row has one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from aligner.config.recipe import Endpoint, Model
from aligner.endpoints.client import check_endpoint
from aligner.errors import RecipeError

from .base import Prompt, Range, Scorer, Scores, check_lengths
from .card import Card
from .judge_base import JudgeBase, read_rubric
from .judge_prompts import FRAME, Messages, Unusable, as_messages, last_line, material, shown_line
from .judge_session import Question, Reply

CRITERIA = """\
- It deals with what was asked and says something of use about it, even if some of it is beside \
the point.
- It covers a good part of what was asked, even if it leaves some of it open.
- It answers the main part of the question in a way that can be used as it stands.
- It is written for the person who asked: direct, complete, in good order, with little left to \
improve.
- It could hardly be better: correct in all it says, fitted to this question, without a word too \
many, and it shows knowledge of the matter."""
"""What a point is given for, unless a card names a `rubric` of its own."""

POINTS: Range = (0.0, 5.0)

_RATE = """\
You rate one answer to a conversation with points that add up. There are five criteria, and one \
point for each that the answer meets:

{rubric}

{frame}

First go through the criteria in a few sentences, and say of each whether it is met. Then add the \
points up, and end with one line of this form, with nothing after it:
Points: N
N is a whole number from 0 (no criterion is met) to 5 (all are)."""

ASKED = """The mark is {mark}. Rate the answer to be rated: go through the five criteria, add the \
points up, and end with one line of this form, with nothing after it:
Points: N
N is a whole number from 0 to 5."""
"""The end of a question; said once more, since small models go by what they have read last."""

REMINDER = """Your reply does not end in usable points. Give your reasons again in one sentence, \
and end with one line of this form, with nothing after it:
Points: N
N is a whole number from 0 to 5."""

_LINE = re.compile(r"points\s*:\s*([0-5])(?:\s*/\s*5)?\s*\.?", re.ASCII | re.IGNORECASE)


def rating_system(rubric: str) -> str:
    """The instructions of a judge that rates."""
    return _RATE.format(rubric=rubric, frame=FRAME)


def rating(prompt: Prompt, completion: str, reference: str | None, rubric: str) -> Messages:
    """The messages that ask for points."""
    parts, mark = material(prompt, completion, reference, "the answer to be rated")
    parts.append(ASKED.format(mark=mark))
    return as_messages(rating_system(rubric), parts)


def points_in(reply: str) -> float:
    """The points in the last line of a reply: `Points: 4`, also `**Points: 4/5**`. Raises:
    Unusable."""
    line = last_line(reply)
    found = _LINE.fullmatch(line)
    if found is None:
        raise Unusable(f"the reply ends in {shown_line(line)}, not in points from 0 to 5")
    return float(found[1])


class Rating(JudgeBase):
    """Asks a language model for points."""

    kind = "rating"

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        rubric: str = CRITERIA,
        samples: int = 1,
        *,
        weights: Model | None = None,
        identity: str = "",
    ) -> None:
        super().__init__(name, endpoint, weights=weights, identity=identity)
        self.rubric = rubric
        self.samples = samples

    @property
    def range(self) -> Range:
        """No point to five."""
        return POINTS

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        """Ask for `samples` ratings of every answer, and return their means. Raises: NoVerdict;
        EndpointError when the judge cannot be asked."""
        check_lengths(prompts, completions, references)
        known: Sequence[str | None] = [None] * len(prompts) if references is None else references
        asked = [
            rating(prompt, completion, reference, self.rubric)
            for prompt, completion, reference in zip(prompts, completions, known)
        ]
        found = self._asked_for(asked, again=False)
        # Where the cache holds nothing but unusable replies, an earlier call has asked.
        silent = [row for row, replies in enumerate(found) if not any(map(_is_said, replies))]
        for row, replies in zip(silent, self._asked_for([asked[row] for row in silent])):
            found[row] = replies
        return self._means(found)

    def _asked_for(self, asked: Sequence[Messages], *, again: bool = True) -> list[list[Reply]]:
        """Ask each question `samples` times."""
        questions = [
            Question(messages, points_in, REMINDER, number, self.samples, again)
            for messages in asked
            for number in range(self.samples)
        ]
        replies = self._session.ask(questions)
        return [
            replies[start : start + self.samples] for start in range(0, len(replies), self.samples)
        ]

    def _means(self, found: Sequence[Sequence[Reply]]) -> Scores:
        means, remarks, missing = [], {}, {}
        for row, replies in enumerate(found):
            points = [reply.value for reply in replies if reply.value is not None]
            if not points:
                missing[row] = replies[0].reason
            elif len(points) < len(replies):
                remarks[row] = f"the mean of {len(points)} ratings: others could not be read"
            means.append(fmean(points) if points else 0.0)
        if missing:
            raise self._no_verdict(missing, len(found), "points")
        return Scores(means, remarks=remarks)

    def _made_of(self) -> list[Any]:
        return [rating_system(self.rubric), ASKED, REMINDER, self.samples]


def _is_said(reply: Reply) -> bool:
    """Say whether a reply has points, or was asked for just now."""
    return reply.value is not None or reply.new > 0


def make(card: Card) -> Scorer:
    """The scorer of a card of the kind `rating`. Asks nobody and loads nothing yet, but says what
    is missing."""
    assert card.endpoint is not None, "a card without an endpoint is refused when it is read"
    if card.range is not None and tuple(card.range) != POINTS:
        raise RecipeError(
            f"{card.name}: range is {card.range[0]:g} to {card.range[1]:g}, and points go from 0 "
            "to 5",
            "drop range",
        )
    if card.samples > 1 and card.endpoint.temperature == 0:
        raise RecipeError(
            f"{card.name}: samples is {card.samples}, and all are the same at temperature 0",
            "set endpoint.temperature, such as 0.7, or drop samples",
        )
    check_endpoint(card.endpoint)
    rubric = CRITERIA if card.rubric is None else read_rubric(card.rubric)
    return Rating(card.name, card.endpoint, rubric, card.samples)
