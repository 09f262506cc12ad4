"""Score many rows part by part, so that progress can be reported and a kill costs one part.

A part holds some hundred answers, and all answers to a prompt, since a model that compares answers
scores them beside one another. An ensemble that brings its members to one scale over the rows of a
call is given all of them in one (`at_once=None`), and only whole calls of it are kept. A row that a
judge has no usable verdict on costs no other row its score: the rest of the part is scored without
it, and every part after it too, before anything is said about it. Its prompt's answers are not kept
in the store, since they were scored without it beside them; the judge keeps its replies.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aligner.errors import DataError, Problem
from aligner.evaluation.answer_rows import SIDES, AnswerRows, Scored
from aligner.evaluation.score_store import ScoreStore
from aligner.reward_models.base import Scorer, placed
from aligner.reward_models.judge import NoVerdict

AT_ONCE = 256
"""Answers of a part; more where a prompt has more answers."""

FIRST_REMARKS = 5
LISTED = 20

Progress = Callable[[int, int], None]


def score_answers(
    scorer: Scorer,
    rows: AnswerRows,
    *,
    store: ScoreStore | None = None,
    at_once: int | None = AT_ONCE,
    keep_failed: bool = False,
    on_progress: Progress | None = None,
) -> list[Scored]:
    """What the scorer says of every answer, in their order; what is in the store already is not
    asked again.

    Raises: DataError that lists the answers which got no score, after all others are in the store;
    with `keep_failed` they come out with an `error` instead.
    """
    if store is not None and at_once is None and len(store.done) < len(rows.answers):
        store.clear()
    done = {} if store is None else store.done
    failed: dict[int, str] = {}
    finished = len(done)
    for part in _parts(rows, done, at_once):
        scored, missing = _score_part(scorer, rows, part)
        failed |= missing
        if store is not None and (whole := _whole(rows, scored, missing, at_once)):
            store.add(whole)
        done.update(scored)
        finished += len(part)
        if on_progress is not None:
            on_progress(finished, len(rows.answers))
    if failed and not keep_failed:
        raise _no_score(scorer.name, rows, failed)
    nothing = {answer: Scored(None, {}, error=reason) for answer, reason in failed.items()}
    return [{**done, **nothing}[answer] for answer in range(len(rows.answers))]


def _parts(rows: AnswerRows, done: dict[int, Scored], at_once: int | None) -> Iterator[list[int]]:
    """Answers that are still to be scored, all answers to a prompt in one part."""
    groups: dict[str, list[int]] = {}
    for number, answer in enumerate(rows.answers):
        if number not in done:
            groups.setdefault(_key(answer.prompt), []).append(number)
    part: list[int] = []
    for group in groups.values():
        part += group
        if at_once is not None and len(part) >= at_once:
            yield part
            part = []
    if part:
        yield part


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True, default=str)


def _whole(
    rows: AnswerRows, scored: dict[int, Scored], missing: dict[int, str], at_once: int | None
) -> dict[int, Scored]:
    """The scores that no missing one could have changed: of other prompts, and none where all were
    scored together."""
    if at_once is None and missing:
        return {}
    prompts = {_key(rows.answers[number].prompt) for number in missing}
    return {
        number: found
        for number, found in scored.items()
        if _key(rows.answers[number].prompt) not in prompts
    }


def _score_part(
    scorer: Scorer, rows: AnswerRows, part: Sequence[int]
) -> tuple[dict[int, Scored], dict[int, str]]:
    """Scores of a part, and why some of its answers have none."""
    left = list(part)
    failed: dict[int, str] = {}
    while True:
        answers = [rows.answers[number] for number in left]
        try:
            found = scorer.score(
                [answer.prompt for answer in answers],
                [answer.text for answer in answers],
                [answer.reference for answer in answers],
            )
            break
        except NoVerdict as error:  # what was answered is in the judge's cache
            failed |= {left[row]: reason for row, reason in error.rows.items()}
            left = [number for row, number in enumerate(left) if row not in error.rows]
        except DataError as error:
            raise placed(error, [rows.place(number) for number in left], "answers") from error
    assert len(found) == len(left), (
        f"{scorer.name} gave {len(found)} scores for {len(left)} answers"
    )
    scored = {}
    for row, (number, score) in enumerate(zip(left, found)):
        attributes = {name: values[row] for name, values in found.attributes.items()}
        scored[number] = Scored(score, attributes, found.remarks.get(row, ""))
    return scored, failed


def _no_score(name: str, rows: AnswerRows, failed: dict[int, str]) -> DataError:
    problems = [
        Problem(reason, where=rows.place(number))
        for number, reason in sorted(failed.items())[:LISTED]
    ]
    return DataError(
        f"{name} gave no score for {len(failed):,} of {len(rows.answers):,} answers; the others "
        "are scored",
        "the same command asks for these again (with --output, add --resume); --keep-failed "
        "writes them without a score",
        problems,
    )


def summary(rows: AnswerRows, scored: Sequence[Scored]) -> dict[str, Any]:
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
    record["failed"] = sum(found.score is None for found in scored)
    return record


def _describe(scored: Sequence[Scored]) -> dict[str, Any]:
    return _numbers([found.score for found in scored if found.score is not None])


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


def _accuracy(chosen: Sequence[Scored], rejected: Sequence[Scored]) -> float | None:
    """Share of pairs whose chosen answer has the higher score; a tie counts half."""
    pairs = [
        (a.score, b.score)
        for a, b in zip(chosen, rejected)
        if a.score is not None and b.score is not None
    ]
    return statistics.fmean((a > b) + 0.5 * (a == b) for a, b in pairs) if pairs else None
