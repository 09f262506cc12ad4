"""Score the answers of a file, and sum up what was said of them.

A part holds some hundred answers, and all answers to a prompt, since a model that compares answers
scores them beside one another. An ensemble that brings its members to one scale over the rows of a
call is given all of them in one (`at_once=None`), and only whole calls of it are kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from aligner.evaluation.answer_rows import SIDES, AnswerRows
from aligner.reward_models.base import Scorer
from aligner.reward_models.batching import (
    Answers,
    Progress,
    Verdict,
    ask,
    by_prompt,
    refuse_silent,
    silent_rows,
)
from aligner.runs.journal import Journal

AT_ONCE = 256
"""Answers of a part; more where a prompt has more answers."""

FIRST_REMARKS = 5


def score_answers(
    scorer: Scorer,
    rows: AnswerRows,
    *,
    journal: Journal | None = None,
    at_once: int | None = AT_ONCE,
    keep_failed: bool = False,
    on_progress: Progress | None = None,
) -> list[Verdict]:
    """What the scorer says of every answer, in their order; what is in the journal already is not
    asked again.

    Raises: DataError that lists the answers which got no score, after all others are in the
    journal; with `keep_failed` they come out with an `error` instead.
    """
    asked = Answers(
        [answer.prompt for answer in rows.answers],
        [answer.text for answer in rows.answers],
        [answer.reference for answer in rows.answers],
        [rows.place(number) for number in range(len(rows.answers))],
    )
    scored = ask(
        lambda: scorer,
        asked,
        by_prompt(asked.prompts, at_once),
        journal=journal,
        together=at_once is None,
        on_progress=on_progress,
    )
    if not keep_failed:
        refuse_silent(
            scorer.name,
            asked,
            silent_rows(scored),
            len(scored),
            "the others are scored",
            "the same command asks for these again (with --output, add --resume); --keep-failed "
            "writes them without a score",
        )
    return scored


def summary(rows: AnswerRows, scored: Sequence[Verdict]) -> dict[str, Any]:
    """What there is to say of all scores together, as plain values; None where a number is not
    defined."""
    record: dict[str, Any] = {
        "rows": len(rows.origins),
        "answers": len(scored),
        "score": _describe(scored),
    }
    if rows.form == "pair":
        sides = scored[0::2], scored[1::2]
        record |= {name: _describe(side) for name, side in zip(SIDES, sides)}
        record["accuracy"] = _accuracy(*sides)
    values: dict[str, list[float]] = {}
    for answer in scored:
        for name, value in answer.attributes.items():
            values.setdefault(name, []).append(value)
    record["attributes"] = {name: _numbers(numbers) for name, numbers in values.items()}
    remarks = [(number, found.remark) for number, found in enumerate(scored) if found.remark]
    record["remarks"] = len(remarks)
    record["first_remarks"] = [
        f"{rows.place(number)}: {remark}" for number, remark in remarks[:FIRST_REMARKS]
    ]
    record["failed"] = sum(found.value is None for found in scored)
    return record


def _describe(scored: Sequence[Verdict]) -> dict[str, Any]:
    return _numbers([found.value for found in scored if found.value is not None])


def _numbers(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"n": 0, "mean": None, "std": None, "min": None, "median": None, "max": None}
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
    }


def _accuracy(chosen: Sequence[Verdict], rejected: Sequence[Verdict]) -> float | None:
    """Share of pairs whose chosen answer has the higher score; a tie counts half."""
    pairs = [
        (a.value, b.value)
        for a, b in zip(chosen, rejected)
        if a.value is not None and b.value is not None
    ]
    return statistics.fmean((a > b) + 0.5 * (a == b) for a, b in pairs) if pairs else None
