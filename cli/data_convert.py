"""`aligner data convert`: rows in another form or another kind of file, with nothing lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import say, say_json
from .models import AsJson, Column, Split, source_section
from .output import Overwrite


def convert(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="File, folder, glob or hub id with rows.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Write here: .jsonl, .csv or .parquet.")
    ],
    to: Annotated[
        str | None, typer.Option("--to", metavar="FORM", help="Form of the rows; without, as is.")
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="COLUMN", help="Leave this further column out."),
    ] = None,
    column: Column = None,
    split: Split = "train",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Convert rows to another form or kind of file, lossless.

    Forms: messages, prompt_completion, sharegpt, alpaca, preference, text, prompt. Every row is
    read back and compared; the first that would lose something ends the command with exit code 3,
    and nothing is written. Further columns go along.

    Example: aligner data convert alpaca.json --to messages -o rows.jsonl
    """
    from aligner.data.rewriting import convert as converted

    _check(data, output, to, overwrite=overwrite)
    source = source_section(data, column, split, None)

    from .render import Screen

    with Screen(silent=as_json) as screen:
        screen.start("converting")
        done = converted(source, output.expanduser(), to, tuple(drop or ()))
    if as_json:
        from aligner.runs.files import dumps

        forms = {"rows": done.rows, "from_form": done.from_form, "to_form": done.to_form}
        kept = {"kept": sorted(done.kept), "columns": list(done.columns)}
        say_json(dumps({"output": str(output), **forms, **kept}, indent=2))
        return
    say(f"{output}: {done.rows:,} rows, {done.from_form} -> {done.to_form}")
    if done.kept:
        say(f"further columns that went along: {', '.join(sorted(done.kept))}")


def _check(data: str, output: Path, to: str | None, *, overwrite: bool) -> None:
    """Say what is in the way before anything is read."""
    from aligner.data.rewriting import FORMS, KINDS
    from aligner.errors import UsageError

    path, given = output.expanduser(), Path(data).expanduser()
    if to is not None and to not in FORMS:
        raise UsageError(f"--to {to} is not a form of rows", f"one of {', '.join(FORMS)}")
    if path.suffix not in KINDS:
        raise UsageError(f"{output} is not a kind that is written", f"one of {', '.join(KINDS)}")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", "create it first")
    if path.is_dir():
        raise UsageError(f"{output} is a folder", "name a file in it")
    if given.resolve() in (path.resolve(), *path.resolve().parents):
        raise UsageError(f"{output} is the data itself, or in its folder", "write elsewhere")
    if path.exists() and not overwrite:
        raise UsageError(f"{output} exists", "--overwrite replaces it")
