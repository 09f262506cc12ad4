"""Preference pairs as text, and a scorer's scores or preferences for them.

A scorer of single answers is asked once for every different answer to a prompt, however many pairs
it stands in; one that compares is asked for every pair. It is asked for some hundred answers at a
time, all answers to one prompt together, so that there is progress to report and nothing depends on
where the cuts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aligner.data.rows import Messages, PreferenceRow, as_turns, prompt_text
from aligner.errors import DataError
from aligner.evaluation.bootstrap import Floats, Integers
from aligner.reward_models.base import Comparer, Prompt, Scorer, sigmoid
from aligner.reward_models.batching import (
    Answers,
    Pairs,
    Progress,
    ask,
    by_prompt,
    chunks,
    different_answers,
    prompt_key,
    refuse_silent,
)
from aligner.runs.journal import Journal

AT_ONCE = 256
"""Answers, or pairs, that a scorer is given in one call; more where a prompt has more answers."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a better and a worse answer as plain text, and where they come from."""

    prompt: Prompt
    chosen: str
    rejected: str
    reference: str | None
    origin: str
    extra: dict[str, Any]
    question: str
    """What the user asked: pairs with the same question are not independent."""


@dataclass(frozen=True, slots=True)
class DifferentAnswers(Answers):
    """Every different answer to every prompt, those of one prompt next to one another."""

    groups: Integers
    """Number of each answer's prompt: scores are comparable within a group."""
    chosen: Integers
    """Which answer is the chosen one of each pair."""
    rejected: Integers


@dataclass(frozen=True, slots=True)
class Judged:
    """What a scorer says of pairs.

    `margins`: above 0 where it picks the chosen answer, 0 for a tie: the difference of two scores
    or, of a comparer, its probability less a half. `scores`: of each of the `DifferentAnswers`;
    none where it only compares. `flips`: pairs for which a comparer named another answer when the
    order changed; None where nothing was asked in two orders. `remarks`: (where from, what the
    scorer said of it).
    """

    margins: Floats
    probabilities: Floats
    scores: Floats | None
    flips: int | None
    remarks: list[tuple[str, str]]
    attributes: dict[str, Floats] = field(default_factory=dict)
    """What else the scorer says of each of the `DifferentAnswers`."""

    @property
    def wins(self) -> Floats:
        """1 where the chosen answer wins, 0.5 for a tie, else 0."""
        wins: Floats = (np.sign(self.margins) + 1.0) / 2.0
        return wins


def as_pairs(rows: Sequence[PreferenceRow]) -> list[Pair]:
    """Pairs as a scorer can read them. DataError for answers of several turns, which have no one
    text."""
    pairs = []
    for row in rows:
        reference = row.extra.get("answer")
        pairs.append(
            Pair(
                row.prompt,
                _text(row.chosen, row.origin),
                _text(row.rejected, row.origin),
                None if reference is None else str(reference),
                row.origin,
                row.extra,
                prompt_text(row),
            )
        )
    return pairs


def _text(answer: str | Messages, origin: str) -> str:
    turns = as_turns(answer, "assistant")
    if len(turns) != 1:
        raise DataError(
            f"{origin}: an answer has {len(turns)} turns, and a scorer reads the text of one",
            "put the turns that both answers share into the prompt, or leave the row out",
        )
    return str(turns[0]["content"])


def numbered(keys: Sequence[Any]) -> Integers:
    """Equal keys as equal numbers, from 0 on in the order of their first appearance."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def answers_of(pairs: Sequence[Pair]) -> DifferentAnswers:
    """The different answers of the pairs, prompt by prompt in the order of the prompts' first
    appearance."""
    order = np.argsort(numbered([prompt_key(pair.prompt) for pair in pairs]), kind="stable")
    found, first, second = different_answers(_columns([pairs[index] for index in order]))
    chosen, rejected = np.empty((2, len(pairs)), dtype=np.int64)
    chosen[order], rejected[order] = first, second
    return DifferentAnswers(
        found.prompts,
        found.texts,
        found.references,
        found.origins,
        groups=numbered([prompt_key(prompt) for prompt in found.prompts]),
        chosen=chosen,
        rejected=rejected,
    )


def _columns(pairs: Sequence[Pair]) -> Pairs:
    return Pairs(
        [pair.prompt for pair in pairs],
        [pair.chosen for pair in pairs],
        [pair.rejected for pair in pairs],
        [pair.reference for pair in pairs],
        [pair.origin for pair in pairs],
    )


def judge(
    scorer: Scorer,
    pairs: Sequence[Pair],
    answers: DifferentAnswers,
    *,
    on_progress: Progress | None = None,
    at_once: int | None = AT_ONCE,
    journal: Journal | None = None,
) -> Judged:
    """Ask the scorer about every pair. `at_once=None` asks in one call, for scores that depend on
    what else is scored (`reward_models.ensemble.scored_together`). `journal` keeps what was said,
    call by call, so that it resumes after a kill.

    Raises: DataError that lists the pairs without a verdict, after all others were asked about.
    """
    compares = isinstance(scorer, Comparer)
    rows = _columns(pairs) if compares else answers
    verdicts = ask(
        lambda: scorer,
        rows,
        chunks(len(pairs), at_once) if compares else by_prompt(answers.prompts, at_once),
        journal=journal,
        together=at_once is None,
        on_progress=on_progress,
    )
    refuse_silent(scorer.name, rows, verdicts.silent, len(verdicts))
    values = np.array(verdicts.values)
    remarks = [(rows.origins[row], verdicts.remarks[row]) for row in sorted(verdicts.remarks)]
    if compares:
        return Judged(values - 0.5, values, None, len(verdicts.flips), remarks)
    margins = values[answers.chosen] - values[answers.rejected]
    chances = np.array([sigmoid(float(margin)) for margin in margins])
    columns: dict[str, list[float]] = {name: [] for name in verdicts[0].attributes}
    for verdict in verdicts:
        for name, column in columns.items():
            column.append(verdict.attributes[name])
    attributes = {name: np.array(column) for name, column in columns.items()}
    return Judged(margins, chances, values, None, remarks, attributes)
