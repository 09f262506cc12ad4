"""`aligner arena testset`: build a test set from a pool of prompts, and hold training data against
it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arena_testset_build import EmbeddingOption, NearDuplicates, build
from .console import say, say_json
from .endings import resumable
from .fast_commands import QuickCommand, QuickGroup
from .models import AsJson, Column, Split, source_section, warn_of
from .output import Overwrite, checked_output

if TYPE_CHECKING:
    from aligner.arena.testset.embedding import Embedding
    from aligner.arena.testset.frozen import TestSet
    from aligner.arena.testset.training_rows import TrainingRows
    from aligner.arena.testset.verify import Checks
    from aligner.data.ledger import FileRecord

    from .render import Screen

app = typer.Typer(
    cls=QuickGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Build a test set, and hold training data against it.",
)

app.command("build", cls=QuickCommand)(build)

Record = dict[str, Any]


@app.command("verify", cls=QuickCommand)
def verify(
    testset: Annotated[Path, typer.Argument(metavar="DIR", help="A test set that build wrote.")],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="DATA", help="Training rows; repeatable."),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", metavar="FILE", help="Further test prompts; repeatable."),
    ] = None,
    benchmark_column: Annotated[
        list[str] | None,
        typer.Option("--benchmark-column", help="Which of its columns holds what."),
    ] = None,
    ngram: Annotated[
        int, typer.Option("--ngram", min=5, max=50, help="Words in a row that are an overlap.")
    ] = 13,
    near_duplicates: NearDuplicates = 0.8,
    nearest: Annotated[
        int, typer.Option("--nearest", min=0, help="Drop so many rows nearest to each item.")
    ] = 0,
    cosine: Annotated[
        float | None,
        typer.Option("--cosine", min=0, max=1, help="Cosine similarity that is an overlap."),
    ] = None,
    embedding: EmbeddingOption = "auto",
    drop_to: Annotated[
        Path | None,
        typer.Option("--drop-to", metavar="FILE", help="Write the rows that do not overlap."),
    ] = None,
    column: Column = None,
    split: Split = "train",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Check a test set, and training data against it.

    The files must be what was frozen, and no row of the data may overlap with an item: prompts and
    answers are looked at, all turns. The report lies with the test set. Exit code 3
    where rows overlap and are not dropped.
    """
    from aligner.arena.testset.embedding import embedding_of
    from aligner.arena.testset.frozen import read_testset
    from aligner.arena.testset.training_rows import TrainingRows
    from aligner.arena.testset.verify import Checks, with_benchmarks
    from aligner.errors import UsageError

    _check_drop(testset, drop_to, against, overwrite)
    tests = read_testset(testset)
    if not against:
        if benchmark:
            raise UsageError(
                "--benchmark is held against data, and there are none", "add --against"
            )
        _say_frozen(tests, as_json=as_json)
        return
    how = embedding_of(embedding)
    near = None if near_duplicates >= 1 else near_duplicates
    checks = Checks(ngram, near, nearest, cosine)

    from .render import Screen

    with Screen(silent=as_json) as screen:
        screen.start("reading the data")
        further = [source_section(path, benchmark_column, split, None) for path in benchmark or ()]
        tests, files = with_benchmarks(tests, further)
        data = TrainingRows([source_section(path, column, split, None) for path in against])
        record = _verify(tests, data, checks, how, drop_to, screen, files)
    warn_of([*data.remarks, *(how.remarks if checks.needs_vectors else [])])
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps(record, indent=2))
    else:
        _show_verified(record)
    _fail(record)


def _say_frozen(tests: TestSet, *, as_json: bool) -> None:
    record = {"testset": str(tests.folder), "testset_sha256": tests.sha256}
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps({**record, "items": len(tests.items)}, indent=2))
    else:
        say(f"{tests.folder} is what was frozen: {len(tests.items):,} items, {tests.sha256}")


def _check_drop(
    testset: Path, drop_to: Path | None, against: list[str] | None, overwrite: bool
) -> None:
    """Say what is in the way of the rows that are kept, before anything is read."""
    from aligner.errors import UsageError

    if drop_to is None:
        if overwrite:
            raise UsageError("--overwrite is about --drop-to, and there is none", "add --drop-to")
        return
    if not against:
        raise UsageError("--drop-to writes rows of --against, and there is none", "add --against")
    for path in (*against, str(testset)):
        checked_output(drop_to, path, resume=False, overwrite=overwrite)


def _verify(
    tests: TestSet,
    data: TrainingRows,
    checks: Checks,
    how: Embedding,
    drop_to: Path | None,
    screen: Screen,
    benchmarks: list[FileRecord],
) -> Record:
    from dataclasses import asdict

    from aligner.arena.testset.embedding import WITHOUT_MODEL
    from aligner.arena.testset.reports import part_journal, write_report
    from aligner.arena.testset.verify import look, report_of, write_without

    named = [asdict(file) for file in benchmarks]
    what = [tests.sha256, named, how.fingerprint, asdict(checks)]
    is_slow = checks.needs_vectors and how.name not in WITHOUT_MODEL
    journal = part_journal(tests, data.sha256, what if is_slow else None)
    with resumable("is not needed: the same command continues"):
        found, origins = look(tests, data, checks, how, screen.on_event, journal)
    record = {**report_of(tests, data, checks, how, found, origins), "benchmarks": named}
    wrote = [write_report(tests, record)]
    if drop_to is not None:
        cleaned = write_without(data, found, origins, drop_to, record)
        wrote += [drop_to, write_report(tests, cleaned)]
    if journal.path is not None:
        journal.path.unlink(missing_ok=True)
    return {**record, "wrote": [str(path) for path in wrote]}


def _show_verified(record: Record) -> None:
    from .render import columns

    rows = []
    for layer, found in record["layers"].items():
        rows.append((layer, *(f"{found[name]:,}" for name in ("rows", "alone", "items"))))
    columns(("layer", "rows", "of it alone", "items"), rows)
    for layer, found in record["layers"].items():
        for example in found["examples"][:2]:
            say(f"{layer}: {example['row']} and {example['item']}: {example['what']}")
    say()
    say(
        f"{record['overlapping']:,} of {record['rows']:,} rows overlap with "
        f"{record['items_found']:,} of {record['items']:,} items"
    )
    for path in record["wrote"]:
        say(f"wrote {path}")


def _fail(record: Record) -> None:
    """End with exit code 3 where rows overlap and no copy is without them."""
    from aligner.errors import DataError

    if record["passes"] or len(record["wrote"]) > 1:
        return
    count = record["overlapping"]
    rows = "row overlaps" if count == 1 else "rows overlap"
    raise DataError(
        f"{count:,} {rows} with the test set", "write the others with --drop-to CLEAN.jsonl"
    )
