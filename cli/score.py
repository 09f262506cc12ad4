"""`aligner score`: what a reward model, a judge or a rule says of the answers in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, say_json
from .models import (
    AsJson,
    Column,
    MaxRows,
    Split,
    TrustRemoteCode,
    source_section,
    warn_of,
)
from .output import Overwrite, Resume, checked_output

if TYPE_CHECKING:
    from aligner.config.recipe import Source
    from aligner.evaluation.answer_rows import AnswerRows
    from aligner.reward_models.base import Scorer
    from aligner.reward_models.card import Card
    from aligner.reward_models.verdicts import Verdicts
    from aligner.runs.partial_output import PartialOutput

    from .render import Screen

NUMBERS = ("n", "mean", "std", "min", "median", "max")

FORM = 2
"""Changed when the finished parts of an output are kept in another form."""


def score(
    data: Annotated[
        str, typer.Option("--data", help="Rows with answers: file, folder, glob or hub id.")
    ],
    reward_model: Annotated[
        str,
        typer.Option(
            "--reward-model",
            metavar="CARD",
            help="Card (file, run, shipped name) or toy, verifier:...",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the scored rows as JSON lines.")
    ] = None,
    column: Column = None,
    split: Split = "train",
    max_rows: MaxRows = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which sample --max-rows takes.")] = 0,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Put before the names of the new columns.")
    ] = "",
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Write rows without a score too, with why.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Score answers with a reward model, a judge or a rule.

    Rows hold one answer (`score`), a list of them (`scores`) or a pair (`score_chosen`,
    `score_rejected`); the names of the new columns stand in brackets. A column `answer` holds the
    right answer for rules that compare with one.
    """
    from aligner.evaluation.answer_rows import read_answers, refuse_taken_columns
    from aligner.reward_models.catalogue import load_scorer, read_spec
    from aligner.reward_models.isolation import announce_walls
    from aligner.runs.files import dumps, json_line

    written = checked_output(output, data, resume=resume, overwrite=overwrite)
    card = read_spec(reward_model, trust_remote_code=trust_remote_code)
    source = source_section(data, column, split, max_rows)
    rows = read_answers(source, seed)
    warn_of(rows.remarks)
    refuse_taken_columns(source, rows.form, prefix)

    from .render import Screen

    with Screen() as screen, written.resumable():
        screen.start("loading the reward model")
        scorer = load_scorer(reward_model, trust_remote_code=trust_remote_code)
        isolation = announce_walls([card], screen.on_event)

        def header() -> dict[str, Any]:
            return {
                "the data": rows.fingerprint,
                "the reward model": scorer.fingerprint(),
                "the number of answers": len(rows),
                "the form of its parts": FORM,
            }

        with written.parts(header) as part:
            scored = _score(scorer, card, rows, part, screen, keep_failed=keep_failed)
            full = _with_scores(source, rows, scored, prefix)
            part.finish(json_line(row, default=str) for row in full)
    record = _record(scorer, rows, scored, data, output)
    if isolation:
        record["isolation"] = isolation
    if as_json:
        if output is None:
            record["rows"] = list(_with_scores(source, rows, scored, prefix))
        say_json(dumps(record, indent=2))
    else:
        _print_summary(record)


def _score(
    scorer: Scorer,
    card: Card,
    rows: AnswerRows,
    part: PartialOutput,
    screen: Screen,
    *,
    keep_failed: bool,
) -> Verdicts:
    """The scores; judges continue the accounts of their budget under the name of the output."""
    from aligner.evaluation.scoring import AT_ONCE, score_answers
    from aligner.reward_models.ensemble import restore_budget, scored_together

    journal = part.journal("scores")
    if journal.path is not None:
        restore_budget(scorer, journal.path, rows.fingerprint)
    return score_answers(
        scorer,
        rows,
        journal=journal,
        at_once=None if scored_together(card) else AT_ONCE,
        keep_failed=keep_failed,
        on_progress=screen.counter("scoring"),
    )


def _with_scores(source: Source, rows: AnswerRows, scored: Verdicts, prefix: str) -> Any:
    from aligner.evaluation.answer_rows import with_scores

    return with_scores(source, rows, scored, prefix)


def _record(
    scorer: Scorer, rows: AnswerRows, scored: Verdicts, data: str, output: Path | None
) -> dict[str, Any]:
    from aligner.evaluation.scoring import summary
    from aligner.reward_models.ensemble import leaves
    from aligner.reward_models.judge_base import JudgeBase

    usage = {judge.name: judge.usage() for judge in leaves(scorer) if isinstance(judge, JudgeBase)}
    return {
        "reward_model": scorer.name,
        "fingerprint": scorer.fingerprint(),
        "data": data,
        "form": rows.form,
        "output": None if output is None else str(output),
        "summary": summary(rows, scored),
        **({"usage": usage} if usage else {}),
    }


def _print_summary(record: dict[str, Any]) -> None:
    """A line of numbers for the scores and for each attribute; then what else there is to know."""
    from .render import columns, number

    summary = record["summary"]
    lines = {"score": summary["score"]}
    lines |= {name: summary[name] for name in ("chosen", "rejected") if name in summary}
    lines |= summary["attributes"]
    shown = []
    for name, values in lines.items():
        cells = ["-" if values[key] is None else number(values[key]) for key in NUMBERS]
        shown.append((name, *cells))
    columns((record["reward_model"], *NUMBERS), shown)
    notes = (
        [f"accuracy: {number(summary['accuracy'])} of the pairs"]
        if summary.get("accuracy") is not None
        else []
    )
    if summary["failed"]:
        notes.append(f"without a score: {summary['failed']}")
    if summary["remarks"]:
        notes.append(f"remarks: {summary['remarks']}, the first of them:")
        notes += [f"  {remark}" for remark in summary["first_remarks"]]
    notes += [_spent(name, used) for name, used in record.get("usage", {}).items() if used]
    if record["output"] is not None:
        notes.append(f"wrote {summary['rows']} rows to {record['output']}")
    if notes:
        say()
    for note in notes:
        say(note)


def _spent(name: str, used: dict[str, Any]) -> str:
    tokens = used["prompt_tokens"] + used["completion_tokens"]
    money = "" if used["usd"] is None else f", {used['usd']:.2f} US dollars"
    return (
        f"{name}: {used['calls']:,} requests ({used['cached']:,} more from the cache), {tokens:,} "
        f"tokens{money}"
    )
