"""Preference pairs as text, and a scorer's scores or preferences for them.

A scorer of single answers is asked once for every different answer to a prompt, however many pairs
it stands in; one that compares is asked for every pair. It is asked for some hundred answers at a
time, all answers to one prompt together, so that there is progress to report and nothing depends on
where the cuts are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aligner.data.rows import Messages, PreferenceRow, as_turns, prompt_text
from aligner.errors import DataError, Problem
from aligner.evaluation.bootstrap import Floats, Integers
from aligner.reward_models.base import (
    Comparer,
    Preferences,
    Prompt,
    Scorer,
    placed,
    preferences,
    sigmoid,
)
from aligner.reward_models.judge import NoVerdict
from aligner.runs.journal import Journal

Progress = Callable[[int, int], None]

AT_ONCE = 256
"""Answers, or pairs, that a scorer is given in one call; more where a prompt has more answers."""

LISTED = 20
"""Pairs without a verdict that an error lists."""


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
class Answers:
    """Every different answer to every prompt, those of one prompt next to one another."""

    prompts: list[Prompt]
    texts: list[str]
    references: list[str | None]
    origins: list[str]
    groups: Integers
    """Number of each answer's prompt: scores are comparable within a group."""
    chosen: Integers
    """Which answer is the chosen one of each pair."""
    rejected: Integers


@dataclass(frozen=True, slots=True)
class Judged:
    """What a scorer says of pairs.

    `margins`: above 0 where it picks the chosen answer, 0 for a tie: the difference of two scores
    or, of a comparer, its probability less a half. `scores`: of each of the `Answers`; none where
    it only compares. `flips`: pairs for which a comparer named another answer when the order
    changed; None where nothing was asked in two orders. `remarks`: (where from, what the scorer
    said of it).
    """

    margins: Floats
    probabilities: Floats
    scores: Floats | None
    flips: int | None
    remarks: list[tuple[str, str]]

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


def answers_of(pairs: Sequence[Pair]) -> Answers:
    """The different answers of the pairs, prompt by prompt in the order of the prompts' first
    appearance."""
    members: dict[str, dict[tuple[str, str | None], Pair]] = {}
    for pair in pairs:
        held = members.setdefault(_key(pair.prompt), {})
        for text in (pair.chosen, pair.rejected):
            held.setdefault((text, pair.reference), pair)
    found = [(key, text, pair) for key, held in members.items() for (text, _), pair in held.items()]
    places = {(key, text, pair.reference): index for index, (key, text, pair) in enumerate(found)}

    def place(pair: Pair, text: str) -> int:
        return places[_key(pair.prompt), text, pair.reference]

    return Answers(
        prompts=[pair.prompt for _, _, pair in found],
        texts=[text for _, text, _ in found],
        references=[pair.reference for _, _, pair in found],
        origins=[pair.origin for _, _, pair in found],
        groups=numbered([key for key, _, _ in found]),
        chosen=np.array([place(pair, pair.chosen) for pair in pairs], dtype=np.int64),
        rejected=np.array([place(pair, pair.rejected) for pair in pairs], dtype=np.int64),
    )


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True, default=str)


def judge(
    scorer: Scorer,
    pairs: Sequence[Pair],
    answers: Answers,
    *,
    on_progress: Progress | None = None,
    at_once: int | None = AT_ONCE,
    journal: Journal | None = None,
) -> Judged:
    """Ask the scorer about every pair. `at_once=None` asks in one call, for scores that depend on
    what else is scored (`reward_models.ensemble.scored_together`). `journal` keeps what was said,
    call by call, so that it resumes after a kill."""
    journal = journal or Journal(None)
    if isinstance(scorer, Comparer):
        return _compare(scorer, pairs, on_progress, at_once, journal)
    return _score(scorer, answers, on_progress, at_once, journal)


def _score(
    scorer: Scorer,
    answers: Answers,
    on_progress: Progress | None,
    at_once: int | None,
    journal: Journal,
) -> Judged:
    scores: list[float] = []
    remarks: list[tuple[str, str]] = []

    def work(stretch: tuple[int, int]) -> dict[str, Any]:
        part = slice(*stretch)
        try:
            found = scorer.score(
                answers.prompts[part], answers.texts[part], answers.references[part]
            )
        except DataError as error:
            raise placed(error, answers.origins[part], "different answers") from error
        assert len(found) == len(answers.texts[part]), (
            f"{scorer.name} gave {len(found)} scores for {stretch}"
        )
        assert all(map(math.isfinite, found)), f"{scorer.name} gave a score that is not finite"
        return {"scores": list(found), "remarks": sorted(found.remarks.items())}

    stretches = list(_stretches(answers.groups, at_once))
    for (start, end), (said, is_new) in zip(stretches, journal.results(stretches, work)):
        remarks += [(answers.origins[start + row], text) for row, text in said["remarks"]]
        scores += said["scores"]
        if on_progress is not None and is_new:
            on_progress(end, len(answers.texts))
    values = np.array(scores, dtype=np.float64)
    margins = values[answers.chosen] - values[answers.rejected]
    return Judged(
        margins, np.array([sigmoid(float(margin)) for margin in margins]), values, None, remarks
    )


def _stretches(groups: Integers, at_once: int | None) -> Iterator[tuple[int, int]]:
    """Cuts between groups, each stretch as short as it can be with at least `at_once` answers."""
    ends = (
        [*(int(end) for end in np.flatnonzero(np.diff(groups)) + 1), len(groups)]
        if len(groups)
        else []
    )
    start = 0
    for end in ends:
        if end == len(groups) or (at_once is not None and end - start >= at_once):
            yield start, end
            start = end


def _compare(
    scorer: Comparer,
    pairs: Sequence[Pair],
    on_progress: Progress | None,
    at_once: int | None,
    journal: Journal,
) -> Judged:
    """Every pair is asked about, also after a judge had no usable verdict on one: what it says is
    in its cache then."""
    chances: list[float] = []
    remarks: list[tuple[str, str]] = []
    silent: dict[int, str] = {}
    flips = 0
    step = at_once or max(1, len(pairs))
    for number, start in enumerate(range(0, len(pairs), step)):
        part = pairs[start : start + step]
        try:
            said = (
                journal[number] if number in journal else journal.add(number, _said(scorer, part))
            )
            remarks += [(part[row].origin, text) for row, text in said["remarks"]]
            flips += said["flips"]
            chances += said["chances"]
        except NoVerdict as error:
            silent |= {start + row: reason for row, reason in error.rows.items()}
        if on_progress is not None:
            on_progress(start + len(part), len(pairs))
    if silent:
        raise _no_verdict(scorer.name, pairs, silent)
    probabilities = np.array(chances, dtype=np.float64)
    return Judged(probabilities - 0.5, probabilities, None, flips, remarks)


def _said(scorer: Comparer, part: Sequence[Pair]) -> dict[str, Any]:
    found = _preferences(scorer, part)
    assert all(0.0 <= chance <= 1.0 for chance in found), (
        f"{scorer.name} gave a preference outside [0, 1]"
    )
    return {
        "chances": list(found),
        "remarks": sorted(found.remarks.items()),
        "flips": len(found.flips),
    }


def _preferences(scorer: Comparer, part: Sequence[Pair]) -> Preferences:
    asked = (
        [pair.prompt for pair in part],
        [pair.chosen for pair in part],
        [pair.rejected for pair in part],
    )
    try:
        found = preferences(scorer, *asked, [pair.reference for pair in part])
    except NoVerdict:
        raise
    except DataError as error:
        raise placed(error, [pair.origin for pair in part], "pairs") from error
    assert len(found) == len(part), (
        f"{scorer.name} gave {len(found)} preferences for {len(part)} pairs"
    )
    return found


def _no_verdict(name: str, pairs: Sequence[Pair], silent: dict[int, str]) -> DataError:
    problems = [Problem(reason, where=pairs[row].origin) for row, reason in sorted(silent.items())]
    return DataError(
        f"{name} gave no verdict on {len(silent):,} of {len(pairs):,} pairs; those on the others "
        "are kept",
        "the same command asks about these pairs again; or leave their rows out",
        problems[:LISTED],
    )
