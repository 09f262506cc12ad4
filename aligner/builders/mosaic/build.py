"""`aligner mosaic`: rows in files -> mosaics in files, in bounded memory, by one or several
processes, resumable.

Read downward. The rows are read once and kept on disk (`prepared/rows.bin`); memory holds some tens
of bytes for each. Chunks are built in parts of `CHUNKS_IN_A_PART`, each part into files of its own
below `shards/`, the last of which (`.done`) says that it is whole: a resumed run builds the missing
ones. At the end the parts are joined, in their order, to

    data/train.jsonl      the samples (or train.parquet, or a folder that `datasets.load_from_disk`
                          reads)
    data/eval.jsonl       held-out rows as they came, where `data.eval` holds some out
    mosaics.jsonl         for each sample: its members, strategy, rule, order, what was left out,
                          style, tokens, pass
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

from aligner.builders.mosaic.bank import Bank, load_bank
from aligner.builders.mosaic.counts import probabilities
from aligner.builders.mosaic.engine import Chunk, Mosaics, Sample, Tally
from aligner.builders.mosaic.files import as_written, join, write_data, write_held_out
from aligner.builders.mosaic.lengths import EstimatedLengths
from aligner.builders.mosaic.members import Members, RowStore
from aligner.builders.mosaic.passes import lengths_for, members_of, mosaics_over
from aligner.builders.mosaic.recipe import MosaicFiles, MosaicRecipe
from aligner.config.load import Resolved
from aligner.config.recipe import Model
from aligner.data.files import file_record
from aligner.data.loading import Loaded, load_rows
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
from aligner.runs.files import dumps, file_sha256, parse_json, write_atomically
from aligner.runs.lock import acquire_lock, release_lock
from aligner.runs.result import Outcome
from aligner.runs.run import Run
from aligner.runs.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNKS_IN_A_PART = 4
"""Some thousands of rows, and seconds: what a kill costs."""
TABLES = "prepared/members.bin"
"""Present when the rows are read, and all that is known of them is there."""
PROGRESS_EVERY = 1000


@dataclass(frozen=True)
class Part:
    """Some chunks of a pass that are built together: `number` counts the parts of all passes."""

    number: int
    pass_number: int
    first: int
    stop: int
    members: int


@dataclass
class Workshop:
    """What builds parts, here or in a process of its own: made from the run directory and the
    recipe alone."""

    recipe: MosaicRecipe
    run_dir: Path
    _chunks: tuple[int, list[Chunk]] | None = None

    @cached_property
    def mosaics(self) -> Mosaics:
        """The mosaics of the rows that were kept on disk."""
        settings = self.recipe.mosaic
        store = RowStore.open(self.run_dir / "prepared" / "rows.bin")
        members = Members.load(self.run_dir / "prepared" / "members.bin", store.__getitem__)
        return mosaics_over(
            members,
            settings,
            load_bank(settings.style_bank),
            load_tokenizer_of(settings),
            max_tokens=self.recipe.data.max_length,
            seed=self.recipe.seed,
        )

    def chunks(self, pass_number: int) -> list[Chunk]:
        """The chunks of a pass; the latest pass is remembered."""
        if self._chunks is None or self._chunks[0] != pass_number:
            self._chunks = (pass_number, self.mosaics.chunks(pass_number))
        return self._chunks[1]

    def parts(self) -> Iterator[Part]:
        """Every part of every pass, in order."""
        number = 0
        for pass_number in range(self.recipe.mosaic.passes):
            chunks = self.chunks(pass_number)
            for first in range(0, len(chunks), CHUNKS_IN_A_PART):
                some = chunks[first : first + CHUNKS_IN_A_PART]
                yield Part(
                    number,
                    pass_number,
                    first,
                    first + len(some),
                    sum(len(chunk.members) for chunk in some),
                )
                number += 1

    def build(self, part: Part) -> None:
        """Build a part and write it; `.done` comes last."""
        tally = Tally()
        chunks = self.chunks(part.pass_number)[part.first : part.stop]
        samples = [sample for chunk in chunks for sample in self.mosaics.samples(chunk, tally)]
        place, kinds = part_file(self.run_dir, part.number), self.mosaics.members.kinds
        lines = "".join(
            dumps(as_written(sample.row, self.recipe.mosaic.form, kinds)) + "\n"
            for sample in samples
        )
        write_atomically(place.with_suffix(".rows"), lines)
        write_atomically(
            place.with_suffix(".told"), "".join(dumps(sample.record()) + "\n" for sample in samples)
        )
        shown = (
            [_example(sample) for sample in samples[:EXAMPLES_OF_A_PART]]
            if part.number < PARTS_WITH_EXAMPLES
            else []
        )
        done = {
            "counts": dict(tally.counts),
            "measured": tally.measured,
            "added_up": tally.added_up,
            "examples": shown,
            "sha256": {ending: file_sha256(place.with_suffix(ending)) for ending in PART_ENDINGS},
        }
        write_atomically(place.with_suffix(".done"), dumps(done))


PART_ENDINGS = (".rows", ".told")
EXAMPLES_OF_A_PART = 40
PARTS_WITH_EXAMPLES = 4


def part_file(run_dir: Path, number: int) -> Path:
    """Return where a part is written, without its endings."""
    return run_dir / "shards" / f"{number:06d}"


def _is_built(place: Path) -> bool:
    """Say whether a part is there and is what was written; one that is damaged is built again."""
    mark = place.with_suffix(".done")
    if not mark.exists():
        return False
    try:
        sums = parse_json(mark, "the part is built again", needed=["counts", "sha256"])["sha256"]
        return all(
            file_sha256(place.with_suffix(ending)) == sums[ending] for ending in PART_ENDINGS
        )
    except (DataError, FileNotFoundError):
        return False


def _example(sample: Sample) -> dict[str, Any]:
    """A sample for the report: its texts, and where its members' own words stand in them."""
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
) -> Outcome:
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
    bank = load_bank(recipe.mosaic.style_bank)
    _check_tokenizer_path(recipe.mosaic)
    session.check_place()
    if (done := session.done()) is not None:
        return done
    if dry_run:
        return session.plan(_plan(recipe, bank, on_event))
    is_read = resume and (session.folder / TABLES).exists()
    rows = None if is_read else _read_rows(recipe, session.folder, bank, on_event)
    try:
        run = session.open()
    except AlignerError:
        if rows is not None:
            rows.discard()
        raise
    if rows is None:
        _check_inputs(run, on_event)
    else:
        rows.move_to(run)
    (run.dir / "shards").mkdir(exist_ok=True)
    workshop = Workshop(recipe, run.dir)
    parts = list(workshop.parts())
    _build_parts(workshop, parts, on_event)
    results = _write(workshop, run, parts, on_event)
    return session.finish(run, results, _parents(run), run.dir / "data")


def load_tokenizer_of(settings: MosaicFiles) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that lengths are counted with, or None where they are estimated."""
    if settings.tokenizer is None:
        return None
    from aligner.models.tokenizers import load_tokenizer

    return load_tokenizer(_as_model(settings.tokenizer, settings), needs_model=False)


def _as_model(tokenizer: str, settings: MosaicFiles) -> Model:
    return Model(name_or_path=tokenizer, chat_template=settings.chat_template)


def _check_tokenizer_path(settings: MosaicFiles) -> None:
    if settings.tokenizer is not None:
        check_tokenizer_path(_as_model(settings.tokenizer, settings), "mosaic.tokenizer")


def _load(recipe: MosaicRecipe, store: RowStore | None, on_event: OnEvent | None) -> Loaded:
    tell(on_event, StageStarted("reading the data"))
    return load_rows(recipe.data, "sft", recipe.seed, group_by=recipe.mosaic.group_by, store=store)


@dataclass(frozen=True)
class ReadRows:
    """Rows that were read and measured into a folder beside the run directory, before anything in
    there is touched."""

    folder: Path
    fingerprint: str
    inputs: dict[str, str]
    ledger: dict[str, Any]

    def move_to(self, run: Run) -> None:
        """Put everything into its place; the tables come last, and say that the rows are there."""
        run.check_data(self.fingerprint, self.inputs)
        run.write_json("data.json", self.ledger)
        run.prepared_dir.mkdir(exist_ok=True)
        if (self.folder / "eval.jsonl").exists():
            (run.dir / "data").mkdir(exist_ok=True)
            shutil.move(self.folder / "eval.jsonl", run.dir / "data" / "eval.jsonl")
        for name in ("rows.bin", "rows.index", "members.bin"):
            shutil.move(self.folder / name, run.prepared_dir / name)
        self.discard()

    def discard(self) -> None:
        """Remove the folder with all that is still in it."""
        release_lock(self.folder)
        shutil.rmtree(self.folder)


def _read_rows(
    recipe: MosaicRecipe, output: Path, bank: Bank, on_event: OnEvent | None
) -> ReadRows:
    """Read and measure all rows, in bounded memory; what is wrong with them leaves an existing run
    as it was."""
    folder = output.with_name(f"{output.name}.reading")
    folder.mkdir(parents=True, exist_ok=True)
    acquire_lock(folder)
    try:
        store = RowStore(folder / "rows.bin")
        loaded = _load(recipe, store, on_event)
        members = _measured(recipe, loaded.train, store, bank, on_event)
        write_held_out(folder / "eval.jsonl", [store[number] for number in loaded.eval])
    except BaseException:
        release_lock(folder)
        shutil.rmtree(folder)
        raise
    tell(on_event, DataReady([*loaded.ledger.table(), *_left_out_rows(members)]))
    members.save(folder / "members.bin")
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
    named = [settings.style_bank, settings.chat_template]
    if settings.tokenizer is not None:
        named += [str(Path(settings.tokenizer) / name) for name in TOKENIZER_FILES]
    return {
        name: file_record(Path(name)).sha256
        for name in named
        if name is not None and Path(name).is_file()
    }


def _check_inputs(run: Run, on_event: OnEvent | None) -> None:
    """Refuse to resume with other data, or with another style bank or tokenizer."""
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
    bank: Bank,
    on_event: OnEvent | None,
) -> Members:
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

    return members_of(
        enumerate(rows) if store is None else ((number, store[number]) for number in rows),
        recipe.mosaic,
        bank,
        lengths_for(tokenizer, bank),
        limit=recipe.mosaic.max_tokens or recipe.data.max_length,
        read=None if store is None else store.__getitem__,
        on_bad_row=recipe.data.on_bad_row,
        on_progress=count,
    )


def _left_out_rows(members: Members) -> list[tuple[str, str]]:
    rows = [("members", f"{len(members):,} rows")]
    rows += [
        ("always alone", f"{number:,} rows: {reason}")
        for reason, number in members.alone_because.most_common()
    ]
    rows += [
        ("not used", f"{number:,} rows: {reason}")
        for reason, number in members.left_out.most_common()
    ]
    return rows


# --- parts ----------------------------------------------------------------------------------------


def _build_parts(workshop: Workshop, parts: Sequence[Part], on_event: OnEvent | None) -> None:
    """Build what is missing, here or in several processes."""
    total = sum(part.members for part in parts)
    missing = [part for part in parts if not _is_built(part_file(workshop.run_dir, part.number))]
    done = total - sum(part.members for part in missing)
    if missing and len(missing) < len(parts):
        tell(
            on_event,
            Notice(
                f"resuming: {len(parts) - len(missing)} of {len(parts)} parts are there already"
            ),
        )
    tell(on_event, StageProgress("building mosaics (rows used)", done, total))
    workers = min(workshop.recipe.mosaic.workers, len(missing))
    finished = (
        _in_processes(workshop, missing, workers) if workers > 1 else _here(workshop, missing)
    )
    for part in finished:
        done += part.members
        tell(on_event, StageProgress("building mosaics (rows used)", done, total))


def _here(workshop: Workshop, parts: Sequence[Part]) -> Iterator[Part]:
    for part in parts:
        workshop.build(part)
        yield part


_WORKSHOP: Workshop | None = None
"""Of a worker process."""


def _open_workshop(recipe: dict[str, Any], run_dir: str, parent: int) -> None:
    """Make a worker ready; it ends when its parent is gone, whatever became of that."""
    global _WORKSHOP
    _WORKSHOP = Workshop(MosaicRecipe.model_validate(recipe), Path(run_dir))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _build_in_worker(part: Part) -> Part:
    assert _WORKSHOP is not None
    _WORKSHOP.build(part)
    return part


def _in_processes(workshop: Workshop, parts: Sequence[Part], workers: int) -> Iterator[Part]:
    """Build parts in worker processes; a few wait in line, so that an error ends the work soon."""
    recipe = workshop.recipe.model_dump(mode="json")
    arguments = (recipe, str(workshop.run_dir), os.getpid())
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _open_workshop, arguments)
    try:
        waiting = iter(parts)
        running: set[Future[Part]] = {
            pool.submit(_build_in_worker, part) for part in islice(waiting, 2 * workers)
        }
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {
                pool.submit(_build_in_worker, part) for part in islice(waiting, len(finished))
            }
            for future in finished:
                yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# --- the end --------------------------------------------------------------------------------------


def _write(
    workshop: Workshop, run: Run, parts: Sequence[Part], on_event: OnEvent | None
) -> dict[str, float]:
    """Join the parts, add up the numbers, write the report; return the results."""
    from aligner.builders.mosaic.report import results_of, summary_of, write_mosaic_report

    tell(on_event, StageStarted("writing the files"))
    settings = workshop.recipe.mosaic
    files = [part_file(run.dir, part.number) for part in parts]
    write_data(run.dir, [file.with_suffix(".rows") for file in files], settings.file_type)
    join([file.with_suffix(".told") for file in files], run.dir / "mosaics.jsonl")
    tally, examples = _added_up(files)
    violations = sum(number for key, number in tally.counts.items() if key.startswith("violation:"))
    if violations:
        tell(
            on_event,
            Warned(
                f"{violations:,} samples failed their check and were not written; their rows "
                "stand alone instead"
            ),
        )
    if alone := tally.counts["overlong:alone"] // settings.passes:
        limit = workshop.mosaics.max_tokens
        tell(
            on_event,
            Warned(
                f"{alone:,} rows are longer than {limit:,} tokens and were written alone: a "
                f"training with data.max_length={limit} "
                "needs data.on_too_long=drop (or truncate) for them; mosaic.on_overlong=drop "
                "leaves them out here"
            ),
        )
    if isinstance(workshop.mosaics.lengths, EstimatedLengths):
        tell(
            on_event,
            Notice("token counts of the report are estimates: no mosaic.tokenizer was named"),
        )
    summary = summary_of(workshop.mosaics, settings, tally)
    run.write_json("mosaic.json", {**summary, "examples": examples})
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


def _added_up(files: Iterable[Path]) -> tuple[Tally, list[dict[str, Any]]]:
    tally, examples = Tally(), []
    for file in files:
        done = json.loads(file.with_suffix(".done").read_text(encoding="utf-8"))
        tally.counts.update(done["counts"])
        tally.measured += done["measured"]
        tally.added_up += done["added_up"]
        examples += done["examples"]
    return tally, examples


# --- dry run --------------------------------------------------------------------------------------


def _plan(recipe: MosaicRecipe, bank: Bank, on_event: OnEvent | None) -> list[tuple[str, str, str]]:
    """Read and measure the rows, and say what would be built."""
    loaded = _load(recipe, None, on_event)
    members = _measured(recipe, loaded.train, None, bank, on_event)
    tell(on_event, DataReady([*loaded.ledger.table(), *_left_out_rows(members)]))
    settings = recipe.mosaic
    limit = settings.max_tokens or recipe.data.max_length
    overlong = sum(tokens > limit for tokens in members.tokens)
    way = "drop" if settings.compat == "released" else settings.on_overlong
    return [
        (
            "limit",
            f"{limit:,} tokens a sample",
            "mosaic.max_tokens" if settings.max_tokens else "data.max_length",
        ),
        ("too long alone", f"{overlong:,} rows", f"on_overlong: {way}"),
        (
            "a pass",
            f"about {_expected(members, settings, limit):,} samples of {len(members):,} rows",
            "more where few fit",
        ),
        ("passes", f"{settings.passes}", ""),
    ]


def _expected(members: Members, settings: MosaicFiles, limit: int) -> int:
    """About how many samples a pass has, by the numbers drawn and by the room there is."""
    plain = 0.0 if settings.compat == "released" else settings.plain_fraction
    room = limit / max(1.0, sum(members.tokens) / len(members))
    if settings.k_distribution == "max_length":
        mean = max(1.0, room)
    else:
        table = probabilities(settings.k_distribution, settings.max_members, settings.min_members)
        mean = sum(max(1.0, min(k, room)) * share for k, share in table.items())
    return round(len(members) / (plain + (1.0 - plain) * mean))
