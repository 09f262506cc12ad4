"""`aligner mosaic`: rows in files -> mosaics in files, in bounded memory, by one or several
processes, resumable.

Read downward. The rows are read once and kept on disk (`prepared/`, as `row_store.py` says);
memory holds some tens of bytes for each. Chunks are built in shards of `CHUNKS_IN_A_SHARD`, each
shard into files of its own below `shards/`, the last of which (`.done`) says that it is whole: a
resumed run builds the missing ones. At the end the shards are joined, in their order, to

    data/train.jsonl      the samples (or train.parquet, or a folder that `datasets.load_from_disk`
                          reads)
    data/eval.jsonl       held-out rows as they came, where `data.eval` holds some out
    mosaics.jsonl         for each sample: its examples, strategy, rule, order, what was left out,
                          style, tokens, epoch
    mosaic.json           every number of the report
    report.html           the report
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.builders.mosaic.engine import Chunk, Counts, Mosaics, Sample
from aligner.builders.mosaic.epochs import examples_of, lengths_for, mosaics_over
from aligner.builders.mosaic.examples import Examples
from aligner.builders.mosaic.files import as_written, join, write_data, write_held_out
from aligner.builders.mosaic.k_distribution import probabilities
from aligner.builders.mosaic.lengths import EstimatedLengths
from aligner.builders.mosaic.phrasings import Phrasings, load_phrasings
from aligner.builders.mosaic.recipe import MosaicFiles, MosaicRecipe
from aligner.builders.mosaic.row_store import ROWS, TABLE, are_kept
from aligner.config.load import Resolved
from aligner.config.recipe import Model
from aligner.data.files import file_record
from aligner.data.loading import Loaded, load_rows
from aligner.data.row_store import RowStore
from aligner.errors import AlignerError, DataError
from aligner.events import (
    DataReady,
    Notice,
    OnEvent,
    StageProgress,
    StageStarted,
    Warned,
    tell,
)
from aligner.models.files import TOKENIZER_FILES, check_tokenizer_path
from aligner.reward_models.named_inputs import compare_inputs
from aligner.runs.files import dumps, file_sha256, parse_json, write_atomically, write_checksums
from aligner.runs.lock import acquire_lock, release_lock
from aligner.runs.result import RunResult
from aligner.runs.run import Run
from aligner.runs.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNKS_IN_A_SHARD = 4
"""Some thousands of rows, and seconds: what a kill costs."""
PROGRESS_EVERY = 1000


@dataclass(frozen=True)
class Shard:
    """Some chunks of an epoch that are built together: `number` counts the shards of all epochs."""

    number: int
    epoch: int
    first: int
    stop: int
    examples: int


@dataclass
class ShardBuilder:
    """What builds shards, here or in a process of its own: made from the run directory and the
    recipe alone."""

    recipe: MosaicRecipe
    run_dir: Path
    _chunks: tuple[int, list[Chunk]] | None = None

    @cached_property
    def mosaics(self) -> Mosaics:
        """The mosaics of the rows that were kept on disk."""
        settings = self.recipe.mosaic
        store = RowStore.open(self.run_dir / "prepared" / ROWS)
        examples = Examples.load(self.run_dir / "prepared" / TABLE, store.__getitem__)
        return mosaics_over(
            examples,
            settings,
            load_phrasings(settings.phrasings),
            load_tokenizer_of(settings),
            max_tokens=self.recipe.data.max_length,
            seed=self.recipe.seed,
        )

    def chunks(self, epoch: int) -> list[Chunk]:
        """The chunks of an epoch; the latest epoch is remembered."""
        if self._chunks is None or self._chunks[0] != epoch:
            self._chunks = (epoch, self.mosaics.chunks(epoch))
        return self._chunks[1]

    def shards(self) -> Iterator[Shard]:
        """Every shard of every epoch, in order."""
        number = 0
        for epoch in range(self.recipe.mosaic.epochs):
            chunks = self.chunks(epoch)
            for first in range(0, len(chunks), CHUNKS_IN_A_SHARD):
                some = chunks[first : first + CHUNKS_IN_A_SHARD]
                yield Shard(
                    number,
                    epoch,
                    first,
                    first + len(some),
                    sum(len(chunk.examples) for chunk in some),
                )
                number += 1

    def build(self, shard: Shard) -> None:
        """Build a shard and write it; `.done` comes last."""
        counts = Counts()
        chunks = self.chunks(shard.epoch)[shard.first : shard.stop]
        samples = [sample for chunk in chunks for sample in self.mosaics.samples(chunk, counts)]
        path, kinds = shard_file(self.run_dir, shard.number), self.mosaics.examples.kinds
        lines = "".join(
            dumps(as_written(sample.row, self.recipe.mosaic.form, kinds)) + "\n"
            for sample in samples
        )
        write_atomically(path.with_suffix(".rows"), lines)
        write_atomically(
            path.with_suffix(".records"),
            "".join(dumps(sample.record()) + "\n" for sample in samples),
        )
        shown = (
            [_shown(sample) for sample in samples[:SAMPLES_SHOWN]]
            if shard.number < SHARDS_SHOWN
            else []
        )
        done = {
            "counts": dict(counts.by_name),
            "measured": counts.measured,
            "added_up": counts.added_up,
            "shown": shown,
            "sha256": {ending: file_sha256(path.with_suffix(ending)) for ending in SHARD_ENDINGS},
        }
        write_atomically(path.with_suffix(".done"), dumps(done))


SHARD_ENDINGS = (".rows", ".records")
SAMPLES_SHOWN = 40
"""Samples of a shard that are kept for the report."""
SHARDS_SHOWN = 4
"""Shards of which samples are kept for the report."""


def shard_file(run_dir: Path, number: int) -> Path:
    """Return where a shard is written, without its endings."""
    return run_dir / "shards" / f"{number:06d}"


def _is_built(path: Path) -> bool:
    """Say whether a shard is there and is what was written; one that is damaged is built again."""
    done = path.with_suffix(".done")
    if not done.exists():
        return False
    try:
        sums = parse_json(done, "the shard is built again", needed=["counts", "sha256"])["sha256"]
        return all(
            file_sha256(path.with_suffix(ending)) == sums[ending] for ending in SHARD_ENDINGS
        )
    except (DataError, FileNotFoundError):
        return False


def _shown(sample: Sample) -> dict[str, Any]:
    """A sample for the report: its texts, and where the words of its examples stand in them."""
    rendered = sample.rendered
    return {
        **sample.record(),
        "prompt": rendered.prompt,
        "completion": rendered.completion,
        "asked": rendered.asked,
        "answered": rendered.answered,
        "lead": list(sample.row.prompt[:-1]) if not isinstance(sample.row.prompt, str) else [],
    }


# --- the run --------------------------------------------------------------------------------------


def run_mosaic(
    resolved: Resolved,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> RunResult:
    """Build the mosaics of a recipe.

    Raises: RecipeError, DataError and UsageError, before anything that is there is touched.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, MosaicRecipe)
    session = Session(
        resolved=resolved,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        on_event=on_event,
        scratch=("shards", "prepared"),
    )
    phrasings = load_phrasings(recipe.mosaic.phrasings)
    if (tokenizer := recipe.mosaic.tokenizer) is not None:
        check_tokenizer_path(_as_model(tokenizer, recipe.mosaic), "mosaic.tokenizer")
    session.check_place()
    if (done := session.done()) is not None:
        return done
    if dry_run:
        return session.plan(_plan(recipe, phrasings, on_event))
    is_read = resume and are_kept(session.folder / "prepared", on_event)
    rows = None if is_read else _read_rows(recipe, session.folder, phrasings, on_event)
    try:
        run = session.open()
    except AlignerError:
        if rows is not None:
            rows.discard()
        raise
    compare_inputs(run, recipe, on_event)
    if rows is None:
        _check_inputs(run, on_event)
    else:
        rows.move_to(run)
    (run.dir / "shards").mkdir(exist_ok=True)
    builder = ShardBuilder(recipe, run.dir)
    shards = list(builder.shards())
    _build_shards(builder, shards, on_event)
    results = _write(builder, run, shards, on_event)
    return session.finish(run, results, _parents(run), run.dir / "data")


def load_tokenizer_of(settings: MosaicFiles) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that lengths are counted with, or None where they are estimated."""
    if settings.tokenizer is None:
        return None
    from aligner.models.tokenizers import load_tokenizer

    return load_tokenizer(_as_model(settings.tokenizer, settings), needs_model=False)


def _as_model(tokenizer: str, settings: MosaicFiles) -> Model:
    return Model(name_or_path=tokenizer, chat_template=settings.chat_template)


def _load(recipe: MosaicRecipe, store: RowStore | None, on_event: OnEvent | None) -> Loaded:
    tell(on_event, StageStarted("reading the data"))
    group_by = recipe.mosaic.group_by
    loaded = load_rows(recipe.data, "sft", recipe.seed, group_by=group_by, store=store)
    loaded.warn(on_event)
    return loaded


@dataclass(frozen=True)
class ReadRows:
    """Rows that were read and measured into a folder beside the run directory, before anything in
    there is touched."""

    folder: Path
    fingerprint: str
    inputs: dict[str, str]
    ledger: dict[str, Any]

    def move_to(self, run: Run) -> None:
        """Put everything into its place; the rows, and what is known of them, come last and at
        once."""
        run.check_data(self.fingerprint, self.inputs)
        run.write_json("data.json", self.ledger)
        if (self.folder / "eval.jsonl").exists():
            (run.dir / "data").mkdir(exist_ok=True)
            shutil.move(self.folder / "eval.jsonl", run.dir / "data" / "eval.jsonl")
        if run.prepared_dir.exists():
            shutil.rmtree(run.prepared_dir)
        shutil.move(self.folder / "prepared", run.prepared_dir)
        self.discard()

    def discard(self) -> None:
        """Remove the folder with all that is still in it."""
        release_lock(self.folder)
        shutil.rmtree(self.folder)


def _read_rows(
    recipe: MosaicRecipe, output: Path, phrasings: Phrasings, on_event: OnEvent | None
) -> ReadRows:
    """Read and measure all rows, in bounded memory; what is wrong with them leaves an existing run
    as it was."""
    folder = output.with_name(f"{output.name}.reading")
    prepared = folder / "prepared"
    prepared.mkdir(parents=True, exist_ok=True)
    acquire_lock(folder)
    try:
        store = RowStore(prepared / ROWS)
        loaded = _load(recipe, store, on_event)
        examples = _measured(recipe, loaded.train, store, phrasings, on_event)
        write_held_out(folder / "eval.jsonl", [store[number] for number in loaded.eval])
    except BaseException:
        release_lock(folder)
        shutil.rmtree(folder)
        raise
    tell(on_event, DataReady([*loaded.ledger.table(), *_left_out_rows(examples)]))
    examples.save(prepared / TABLE)
    write_checksums(prepared)
    sources = {
        record.path: record.sha256 for source in loaded.ledger.sources for record in source.files
    }
    return ReadRows(
        folder,
        loaded.fingerprint,
        {**sources, **_settings_files(recipe.mosaic)},
        loaded.ledger.to_json(),
    )


def _settings_files(settings: MosaicFiles) -> dict[str, str]:
    """Files that decide over the samples beside the rows, with their digests."""
    named = [settings.phrasings, settings.chat_template]
    if settings.tokenizer is not None:
        named += [str(Path(settings.tokenizer) / name) for name in TOKENIZER_FILES]
    return {
        name: file_record(Path(name)).sha256
        for name in named
        if name is not None and Path(name).is_file()
    }


def _check_inputs(run: Run, on_event: OnEvent | None) -> None:
    """Refuse to resume with other data, phrasings or tokenizer."""
    tell(on_event, StageStarted("checking that the data are the same"))
    inputs = run.read_json("inputs.json")
    now = dict(inputs["sources"])
    for path in now:
        if Path(path).is_file():
            now[path] = file_record(Path(path)).sha256
        elif not path.endswith("]"):  # else a dataset of the hub
            tell(on_event, Warned(f"{path} is gone; the rows that were read from it are used"))
    run.check_data(inputs["fingerprint"], now)


def _measured(
    recipe: MosaicRecipe,
    rows: Sequence[Any],
    store: RowStore | None,
    phrasings: Phrasings,
    on_event: OnEvent | None,
) -> Examples:
    """Measure the training rows. With a store, rows are numbers in it."""
    tokenizer = load_tokenizer_of(recipe.mosaic)
    if tokenizer is None:
        tell(
            on_event,
            Warned(
                "no mosaic.tokenizer is named: lengths are estimated as characters / 3.5, without "
                "a chat template"
            ),
        )

    def count(done: int) -> None:
        if done % PROGRESS_EVERY == 0 or done == len(rows):
            tell(on_event, StageProgress("measuring rows", done, len(rows)))

    return examples_of(
        enumerate(rows) if store is None else ((number, store[number]) for number in rows),
        recipe.mosaic,
        phrasings,
        lengths_for(tokenizer, phrasings),
        limit=recipe.mosaic.max_tokens or recipe.data.max_length,
        read=None if store is None else store.__getitem__,
        on_bad_row=recipe.data.on_bad_row,
        on_progress=count,
    )


def _left_out_rows(examples: Examples) -> list[tuple[str, str]]:
    rows = [("examples", f"{len(examples):,} rows")]
    rows += [
        ("always alone", f"{number:,} rows: {reason}")
        for reason, number in examples.alone_because.most_common()
    ]
    rows += [
        ("not used", f"{number:,} rows: {reason}")
        for reason, number in examples.left_out.most_common()
    ]
    return rows


# --- shards --------------------------------------------------------------------------------------


def _build_shards(builder: ShardBuilder, shards: Sequence[Shard], on_event: OnEvent | None) -> None:
    """Build what is missing, here or in several processes."""
    total = sum(shard.examples for shard in shards)
    missing = [
        shard for shard in shards if not _is_built(shard_file(builder.run_dir, shard.number))
    ]
    done = total - sum(shard.examples for shard in missing)
    if missing and len(missing) < len(shards):
        tell(
            on_event,
            Notice(
                f"resuming: {len(shards) - len(missing)} of {len(shards)} shards are there already"
            ),
        )
    tell(on_event, StageProgress("building mosaics (rows used)", done, total))
    workers = min(builder.recipe.mosaic.workers, len(missing))
    for shard in _in_processes(builder, missing, workers) if workers > 1 else missing:
        if workers <= 1:
            builder.build(shard)
        done += shard.examples
        tell(on_event, StageProgress("building mosaics (rows used)", done, total))


_BUILDER: ShardBuilder | None = None
"""Of a worker process."""


def _open_builder(recipe: dict[str, Any], run_dir: str, parent: int) -> None:
    """Make a worker ready; it ends when its parent is gone, whatever became of that."""
    global _BUILDER
    _BUILDER = ShardBuilder(MosaicRecipe.model_validate(recipe), Path(run_dir))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _build_in_worker(shard: Shard) -> Shard:
    assert _BUILDER is not None
    _BUILDER.build(shard)
    return shard


def _in_processes(builder: ShardBuilder, shards: Sequence[Shard], workers: int) -> Iterator[Shard]:
    """Build shards in worker processes; a few wait in line, so that an error ends the work soon."""
    recipe = builder.recipe.model_dump(mode="json")
    arguments = (recipe, str(builder.run_dir), os.getpid())
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _open_builder, arguments)
    try:
        waiting = iter(shards)
        running: set[Future[Shard]] = {
            pool.submit(_build_in_worker, shard) for shard in islice(waiting, 2 * workers)
        }
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {
                pool.submit(_build_in_worker, shard) for shard in islice(waiting, len(finished))
            }
            for future in finished:
                yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# --- the end --------------------------------------------------------------------------------------


def _write(
    builder: ShardBuilder, run: Run, shards: Sequence[Shard], on_event: OnEvent | None
) -> dict[str, float]:
    """Join the shards, add up the numbers, write the report; return the results."""
    from aligner.builders.mosaic.report import results_of, summary_of, write_mosaic_report

    tell(on_event, StageStarted("writing the files"))
    settings = builder.recipe.mosaic
    files = [shard_file(run.dir, shard.number) for shard in shards]
    write_data(run.dir, [file.with_suffix(".rows") for file in files], settings.file_type)
    join([file.with_suffix(".records") for file in files], run.dir / "mosaics.jsonl")
    counts, shown = _added_up(files)
    violations = sum(
        number for key, number in counts.by_name.items() if key.startswith("violation:")
    )
    if violations:
        tell(
            on_event,
            Warned(
                f"{violations:,} samples failed their check and were not written; their rows "
                "stand alone instead"
            ),
        )
    if alone := counts.by_name["overlong:alone"] // settings.epochs:
        limit = builder.mosaics.max_tokens
        tell(
            on_event,
            Warned(
                f"{alone:,} rows are longer than {limit:,} tokens and were written alone: a "
                f"training with data.max_length={limit} "
                "needs data.on_too_long=drop (or truncate) for them; mosaic.on_overlong=drop "
                "leaves them out here"
            ),
        )
    if isinstance(builder.mosaics.lengths, EstimatedLengths):
        tell(
            on_event,
            Notice("token counts of the report are estimates: no mosaic.tokenizer was named"),
        )
    summary = summary_of(builder.mosaics, settings, counts)
    run.write_json("mosaic.json", {**summary, "shown": shown})
    write_mosaic_report(run.dir)
    for leftover in (run.dir / "data").glob(".*.tmp"):
        leftover.unlink()
    return results_of(summary)


def _parents(run: Run) -> list[dict[str, Any]]:
    """Return the files that the rows came from."""
    files_read = [
        file for source in run.read_json("data.json")["sources"] for file in source["files"]
    ]
    return [
        {"kind": "data", "path": file["path"], "fingerprint": file["sha256"]} for file in files_read
    ]


def _added_up(files: Iterable[Path]) -> tuple[Counts, list[dict[str, Any]]]:
    counts, shown = Counts(), []
    for file in files:
        done = json.loads(file.with_suffix(".done").read_text(encoding="utf-8"))
        counts.by_name.update(done["counts"])
        counts.measured += done["measured"]
        counts.added_up += done["added_up"]
        shown += done["shown"]
    return counts, shown


# --- dry run --------------------------------------------------------------------------------------


def _plan(
    recipe: MosaicRecipe, phrasings: Phrasings, on_event: OnEvent | None
) -> list[tuple[str, str, str]]:
    """Read and measure the rows, and say what would be built."""
    loaded = _load(recipe, None, on_event)
    examples = _measured(recipe, loaded.train, None, phrasings, on_event)
    tell(on_event, DataReady([*loaded.ledger.table(), *_left_out_rows(examples)]))
    settings = recipe.mosaic
    limit = settings.max_tokens or recipe.data.max_length
    overlong = sum(tokens > limit for tokens in examples.tokens)
    way = "drop" if settings.compat == "released" else settings.on_overlong
    return [
        (
            "limit",
            f"{limit:,} tokens a sample",
            "mosaic.max_tokens" if settings.max_tokens else "data.max_length",
        ),
        ("too long alone", f"{overlong:,} rows", f"on_overlong: {way}"),
        (
            "an epoch",
            f"about {_expected(examples, settings, limit):,} samples of {len(examples):,} rows",
            "more where few fit",
        ),
        ("epochs", f"{settings.epochs}", ""),
    ]


def _expected(examples: Examples, settings: MosaicFiles, limit: int) -> int:
    """About how many samples an epoch has, by the numbers drawn and by the room there is."""
    plain = 0.0 if settings.compat == "released" else settings.plain_fraction
    room = limit / max(1.0, sum(examples.tokens) / len(examples))
    if settings.k_distribution == "max_length":
        mean = max(1.0, room)
    else:
        table = probabilities(settings.k_distribution, settings.max_examples, settings.min_examples)
        mean = sum(max(1.0, min(k, room)) * share for k, share in table.items())
    return round(len(examples) / (plain + (1.0 - plain) * mean))
