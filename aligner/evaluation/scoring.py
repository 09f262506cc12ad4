"""Score the answers of a file, and sum up what was said of them.

A part holds some hundred answers, and all answers to a prompt, since a model that compares answers
scores them beside one another. An ensemble that brings its members to one scale over the rows of a
call is given all of them in one (`at_once=None`), and only whole calls of it are kept.
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Iterable
from typing import Any

from aligner.evaluation.answer_rows import SIDES, AnswerRows
from aligner.reward_models.base import Scorer
from aligner.reward_models.batching import (
    Progress,
    ask,
    by_group,
    refuse_silent,
)
from aligner.reward_models.verdicts import Verdicts
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
) -> Verdicts:
    """What the scorer says of every answer, in their order; what is in the journal already is not
    asked again.

    Raises: DataError that lists the answers which got no score, after all others are in the
    journal; with `keep_failed` they come out with an `error` instead.
    """
    scored = ask(
        lambda: scorer,
        rows,
        by_group(rows.prompts, at_once),
        journal=journal,
        together=at_once is None,
        on_progress=on_progress,
    )
    if not keep_failed:
        refuse_silent(
            scorer.name,
            rows,
            scored.silent,
            len(scored),
            "the others are scored",
            "the same command asks for these again (with --output, add --resume); --keep-failed "
            "writes them without a score",
        )
    return scored


def summary(rows: AnswerRows, scored: Verdicts) -> dict[str, Any]:
    """What there is to say of all scores together, as plain values; None where a number is not
    defined."""
    record: dict[str, Any] = {
        "rows": len(rows.rows),
        "answers": len(scored),
        "score": _describe(scored.values),
    }
    if rows.form == "pair":
        sides = scored.values[0::2], scored.values[1::2]
        record |= {name: _describe(side) for name, side in zip(SIDES, sides)}
        record["accuracy"] = _accuracy(*sides)
    record["attributes"] = {
        name: _describe(scored.attribute(name)) for name in scored.attribute_names()
    }
    record["remarks"] = len(scored.remarks)
    record["first_remarks"] = [
        f"{rows.origin(number)}: {scored.remarks[number]}"
        for number in sorted(scored.remarks)[:FIRST_REMARKS]
    ]
    record["failed"] = len(scored.silent)
    return record


def _describe(found: Iterable[float]) -> dict[str, Any]:
    """Statistics of those that are numbers; NaN stands for an answer without a score."""
    values = array("d", (value for value in found if not math.isnan(value)))
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


def _accuracy(chosen: Iterable[float], rejected: Iterable[float]) -> float | None:
    """Share of pairs whose chosen answer has the higher score; a tie counts half."""
    pairs = [(a, b) for a, b in zip(chosen, rejected) if not (math.isnan(a) or math.isnan(b))]
    return statistics.fmean((a > b) + 0.5 * (a == b) for a, b in pairs) if pairs else None
