"""`aligner data check`: what a training would refuse of data, and what it would take and should
not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, say_json
from .models import AsJson, Column, Split, TrustRemoteCode, model_section, source_section, warn_of

if TYPE_CHECKING:
    from aligner.data.inspection import Findings
    from aligner.tokenization.row_checks import TokenChecks

Record = dict[str, Any]


def check(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Files, folders, globs or hub ids.")
    ],
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", metavar="FILE", help="Rows that must not be trained on."),
    ] = None,
    held_out_column: Annotated[
        list[str] | None,
        typer.Option("--held-out-column", help="Which of its columns holds what: prompt=question."),
    ] = None,
    ngram: Annotated[
        int, typer.Option("--ngram", min=2, help="Words in a row that are an overlap with it.")
    ] = 13,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Check with the tokenizer of this model."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=1, help="Longest row that is not cut, in tokens."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="NAME", help="Do not fail for this finding."),
    ] = None,
    column: Column = None,
    split: Split = "train",
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Check data before a training: rows, turns, duplicates, splits, lengths.

    Other splits of a folder and the files of --held-out must not share prompts with it. With a
    model, its chat template and tokenizer are asked about every row. Exit code 3 where something is
    found that is not allowed.

    Example: aligner data check train.jsonl --held-out test.jsonl --model runs/sft/final
    """
    from aligner.data.inspection import Findings, inspect

    _check_options(allow or [], model, max_length)
    findings = Findings()
    tokens = (
        None if model is None else _token_checks(model, findings, max_length, trust_remote_code)
    )

    from .render import Screen

    with Screen(silent=as_json) as screen:
        screen.start("looking at the rows")
        done = inspect(
            [source_section(path, column, split, None) for path in data],
            [source_section(path, held_out_column, split, None) for path in held_out or ()],
            [] if tokens is None else [tokens.look],
            findings,
            ngram,
        )
        if tokens is not None:
            tokens.finish()
    warn_of(done.ledger.remarks())
    failed = findings.failed(allow or ())
    record: Record = {
        "sources": [_source(entry) for entry in done.ledger.sources],
        "rows": done.rows,
        "lengths": {} if tokens is None else tokens.quantiles(),
        "findings": findings.to_json(),
        "failed": failed,
        "passes": not failed,
    }
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps(record, indent=2))
    else:
        _show(record)
    _fail(failed)


def _check_options(allow: list[str], model: str | None, max_length: int | None) -> None:
    from aligner.data.inspection import FAILS
    from aligner.errors import UsageError

    for name in allow:
        if name not in FAILS:
            raise UsageError(f"--allow {name}: nothing fails for it", f"one of {', '.join(FAILS)}")
    if max_length is not None and model is None:
        raise UsageError("--max-length counts tokens, and there is no tokenizer", "add --model")


def _token_checks(
    name: str, findings: Findings, max_length: int | None, trust_remote_code: bool
) -> TokenChecks:
    from aligner.models.tokenizers import load_tokenizer
    from aligner.tokenization.row_checks import TokenChecks

    section = model_section(name, "auto", "none", trust_remote_code)
    return TokenChecks(load_tokenizer(section, needs_model=False), findings, max_length)


def _source(entry: Any) -> Record:
    held_out = entry.role == "eval"
    facts = {"path": entry.path, "held_out": held_out, "rows": entry.rows_read}
    return {**facts, "format": entry.format, "evidence": entry.evidence}


def _show(record: Record) -> None:
    """The sources, the findings with their first rows, and the lengths."""
    from aligner.data.inspection import FAILS, REMARKS

    from .render import columns

    for source in record["sources"]:
        role = " (held out)" if source["held_out"] else ""
        found = f"{source['format']}, {source['evidence']}"
        say(f"{source['path']}{role}: {source['rows']:,} rows, {found}")
    if record["lengths"]:
        told = ", ".join(f"{name} {length:,}" for name, length in record["lengths"].items())
        say(f"lengths in tokens: {told}")
    if not record["findings"]:
        say("nothing was found")
        return
    say()
    rows = []
    for name, found in record["findings"].items():
        verdict = "fails" if name in record["failed"] else "allowed" if found["fails"] else "told"
        rows.append((name, f"{found['rows']:,}", verdict, {**FAILS, **REMARKS}[name]))
    columns(("finding", "rows", "", "what"), rows)
    say()
    for name, found in record["findings"].items():
        for example in found["examples"]:
            say(f"{name}: {example['row']}: {example['what']}")


def _fail(failed: list[str]) -> None:
    from aligner.errors import DataError

    if failed:
        raise DataError(
            f"the data fails for {', '.join(failed)}",
            f"fix the rows, or accept them with --allow {failed[0]}",
        )
