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

A reply must end in a line of a fixed form (`judge_prompts.py`). One that does not is asked for
again with a reminder. A row that has no grade then gets no score: neither the worst grade nor a
middle one would be the judge's opinion. All other rows are asked, their replies are kept, and then
`NoVerdict`, a DataError that lists such rows, is raised. Asking once more takes the others from the
cache and asks new questions only for these.

Replies are kept in `$ALIGNER_CACHE/judge`, or `~/.cache/aligner/judge`, in one file for each
fingerprint; deleting it costs money and time only. The endpoint's budget holds from the first
question to the end of the program; under `account` it continues in a later one. Not here: several
judges with votes (an `ensemble` of judges is that), and battles with ratings.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner.config.recipe import Endpoint, Model
from aligner.endpoints.client import check_endpoint
from aligner.errors import Problem, RecipeError
from aligner.runs.cache import cache_folder

from .base import NoVerdict, Preferences, Prompt, Range, Scorer, Scores, check_lengths
from .card import Card
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
from .judge_session import Question, Reply, Session

LISTED = 20
"""Rows without a verdict that an error lists; all of them are in its `rows`."""


class Judge:
    """Asks a language model for grades and for comparisons."""

    def __init__(
        self, name: str, endpoint: Endpoint, rubric: str = RUBRIC, scale: Range = (1.0, 10.0)
    ) -> None:
        self._name = name
        self.endpoint = endpoint
        self.rubric = rubric
        self.scale = scale

    @property
    def name(self) -> str:
        """The name of its card."""
        return self._name

    @property
    def range(self) -> Range:
        """The scale of its grades."""
        return self.scale

    @property
    def account(self) -> str:
        """The name under which the budget continues in a later program; set it before the first
        question."""
        return self._session.run

    @account.setter
    def account(self, name: str) -> None:
        self._session.run = name

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
            [grades[row][0] for row in range(len(prompts))], remarks=_remarks(enumerate(replies))
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
            chances, flips, _remarks((row, reply) for row in asked for reply in by_row[row])
        )

    @functools.cached_property
    def _asked(self) -> str:
        """A digest of what decides a reply, but for a local model's weights."""
        what = [
            self.endpoint.model_dump(
                include={"backend", "model", "temperature", "top_p", "max_tokens", "extra"}
            ),
            self.scale,
            grade_system(self.rubric, self.scale),
            grade_reminder(self.scale),
            compare_system(self.rubric),
            COMPARE_REMINDER,
        ]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    def fingerprint(self) -> str:
        """Model, sampling, scale and all that the judge reads; not the address, as in the cache
        of replies."""
        return f"judge:{self._asked}{self._weights}"

    def usage(self) -> dict[str, Any]:
        """What was asked and spent so far: calls, cached replies, tokens, money where the card has
        prices."""
        return self._session.usage()

    def close(self) -> None:
        """Give connections, files and a local model back; the next question opens them again."""
        self._session.close()

    @functools.cached_property
    def _session(self) -> Session:
        return Session(self.endpoint, cache_folder("judge") / f"{self._asked}.sqlite")

    @functools.cached_property
    def _weights(self) -> str:
        """What tells models of one name apart: the weights of a local one, the text of a script."""
        if self.endpoint.replay is not None or self.endpoint.backend == "openai":
            return ""
        if self.endpoint.backend == "scripted":
            return (
                ":" + hashlib.sha256(Path(str(self.endpoint.script)).read_bytes()).hexdigest()[:16]
            )
        from aligner.models.fingerprint import model_fingerprint

        self._session.open()  # a model of the hub is on this machine after that
        return ":" + model_fingerprint(Model(name_or_path=self.endpoint.model))[:16]

    def _values(self, replies: dict[int, list[Reply]], what: str) -> dict[int, list[float]]:
        """The values of each row's replies; NoVerdict names the rows that lack one."""
        values, missing = {}, {}
        for row, found in replies.items():
            values[row] = [reply.value for reply in found if reply.value is not None]
            if len(values[row]) < len(found):
                missing[row] = next(reply.reason for reply in found if reply.value is None)
        if missing:
            raise self._no_verdict(missing, len(replies), what)
        return values

    def _no_verdict(self, missing: dict[int, str], asked: int, what: str) -> NoVerdict:
        problems = [
            Problem(reason, where=f"row {row + 1}")
            for row, reason in sorted(missing.items())[:LISTED]
        ]
        error = NoVerdict(
            f"{self.name} gave no usable {what} for {len(missing)} of {asked} rows; the others "
            "are answered and kept",
            "Score again to ask about these rows only, leave them out, or raise "
            "endpoint.max_tokens where replies were cut.",
            problems,
        )
        error.rows = missing
        return error


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
        RUBRIC if card.rubric is None else _read_rubric(card.rubric),
        scale,
    )


def _read_rubric(file: str) -> str:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the rubric {file} cannot be read: {error}",
            "a path that begins with a dot is taken from the card's folder",
        ) from error
    if not text:
        raise RecipeError(
            f"the rubric {file} is empty", "write down what is to be judged, or drop `rubric`"
        )
    return text


def _remarks(replies: Any) -> dict[int, str]:
    """Rows whose first reply could not be used."""
    return {
        row: f"the judge was asked {reply.asked} times" for row, reply in replies if reply.asked > 1
    }
