"""From typed rows to the token datasets that trainers read, with every row and token counted on
the way.

Tokenized data are written below the run directory (`prepared/`) once, before any rank starts, and
read from there: ranks, and a resumed run, never tokenize again. How they become batches is decided
by `batching.py` beside this. Each method turns a row into columns by an encoder of its own
(`encode.py` in its folder), which says what they are.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aligner.config.defaults import trainer_value
from aligner.config.recipe import Data, TrainRecipe
from aligner.data.ledger import SplitLedger
from aligner.data.loading import Loaded
from aligner.data.rows import Row
from aligner.errors import DataError, Problem
from aligner.events import OnEvent, StageProgress, Warned, tell
from aligner.runs.files import check_checksums, dumps, write_atomically, write_checksums
from aligner.tokenization.batching import (
    Batching,
    Packing,
    RowsApart,
    choose_batching,
    last_step,
    pack,
    padding_share,
    refuse_no_batch,
    rows_per_step,
)
from aligner.tokenization.control_tokens import set_control_tokens
from aligner.tokenization.row_notes import RowNotes

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TOGETHER = 500
"""Rows that are rendered and tokenized together, between two reports of progress."""

IN_MEMORY = 1_000_000
"""Tokens whose columns memory holds at most, until they are written."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """A row as the trainer reads it, and its tokens counted."""

    columns: dict[str, Any]
    """What the method's trainer reads; `length`, in tokens, among them."""
    num_tokens: int
    num_target: int
    """Tokens that are trained on."""
    num_untruncated: int
    """Tokens of the longest sequence of the row before anything was cut."""
    num_truncated: int = 0
    """Tokens that were cut."""


@dataclass(frozen=True, slots=True)
class SkipRow:
    """A row of which nothing is left to train, and why."""

    reason: str


Encode = Callable[[Row, int | None], TokenizedRow | SkipRow]
"""A row and the length to cut it to (None: leave it whole) -> what the trainer reads of it."""


WatchRow = Callable[[Row, TokenizedRow | SkipRow], None]
"""Told of each row and of what was made of it; rows that raise are not told of."""


@dataclass(frozen=True)
class RowEncoder:
    """How a method turns rows into columns."""

    encode: Encode
    unread: Callable[[Row], Counter[str]]
    """Counts the parts of a row that reach no token, by name."""
    packing: Packing = False
    """Whether several rows may share a sequence."""
    look_ahead: Callable[[Sequence[Row]], None] | None = None
    """Told of the rows that are encoded next, so that they can be prepared together."""

    def watched(self, watch: WatchRow) -> RowEncoder:
        """Return the same, which tells `watch` of each row that it encodes."""

        def encode(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
            made = self.encode(row, limit)
            watch(row, made)
            return made

        return replace(self, encode=encode)


class EpochSource(Protocol):
    """Training rows that are made again for each epoch."""

    def rows(self, number: int) -> list[Row]:
        """Return the rows of an epoch."""

    def describe(self) -> str:
        """Say in a few words what was made of what."""


@dataclass(frozen=True, slots=True)
class TokenizedData:
    """Tokenized splits and how they are batched."""

    train: Dataset
    eval: Dataset | None
    batching: Batching


def tokenize(
    recipe: TrainRecipe,
    loaded: Loaded,
    tokenizer: PreTrainedTokenizerBase,
    rows: RowEncoder,
    folder: Path,
    on_event: OnEvent | None = None,
    epochs: EpochSource | None = None,
    test_packing: Callable[[], RowsApart] | None = None,
) -> TokenizedData:
    """Tokenize both splits, decide on batches, count everything in the ledger, and write the result
    to `folder`.

    `rows` is the method's encoder; `test_packing` is asked, where rows would be packed, whether the
    model keeps them apart. With `epochs`, the training rows are those that it makes for each epoch.
    Raises: DataError listing the rows that cannot be used: too long, or with nothing to train.
    """
    set_control_tokens(tokenizer, recipe.data.control_tokens)
    with _scratch(folder) as scratch:
        ledger = loaded.ledger
        work = _Tokenizing(recipe.data, rows, RowNotes(tokenizer, rows.unread), on_event, scratch)
        counts = ledger.split("train")
        parts: list[Dataset] = []
        lengths = array("i")
        batching: Batching | None = None
        while batching is None or (epochs is not None and _wants_more(recipe, parts)):
            made, name = loaded.train, "train"
            if epochs is not None:
                made, name = epochs.rows(len(parts)), f"epoch {len(parts) + 1}"
                counts.made = (counts.made or 0) + len(made)
            part, of_part = work.split(made, counts, name)
            lengths.extend(of_part)
            if batching is None:  # the first part decides
                batching = choose_batching(recipe, of_part, rows.packing, test_packing)
            if batching.packing:
                part = pack(part, recipe.data.max_length, recipe.seed + len(parts))
            parts.append(part)
        held_out = None
        if loaded.eval:
            held_out, _ = work.split(loaded.eval, ledger.split("eval"), "eval")
        sequences = sum(map(len, parts))
        refuse_no_batch(recipe, sequences)
        if batching.packing:
            counts.count(
                sequences=sequences,
                packed_fill=counts.tokens / (sequences * recipe.data.max_length),
            )
        else:
            batch = trainer_value(recipe, "per_device_train_batch_size")
            counts.count(
                padding_share=padding_share(lengths, batch, recipe.seed, grouped=batching.grouped)
            )
        if epochs is not None:
            counts.made_of = epochs.describe()
            sizes = [len(part) for part in parts]
            batching = replace(batching, epoch_sizes=sizes, steps=last_step(recipe, sizes))
        ledger.check()
        for name, split in ledger.splits.items():
            if (remark := work.notes.remark(split, name)) is not None:
                tell(on_event, Warned(remark))
        _write(folder, parts, held_out, batching)
    return load_tokenized(folder)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give a folder beside the one that is written, for rows on their way, and empty it
    afterwards."""
    scratch = folder.with_name(f"{folder.name}.rows")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _wants_more(recipe: TrainRecipe, parts: Sequence[Dataset]) -> bool:
    """Say whether training needs more epochs than these."""
    max_steps = int(trainer_value(recipe, "max_steps"))
    if max_steps > 0:
        return sum(map(len, parts)) < max_steps * rows_per_step(recipe)
    return len(parts) < float(trainer_value(recipe, "num_train_epochs"))


def load_tokenized(folder: Path) -> TokenizedData:
    """Read what `tokenize` wrote.

    Raises: DataError when a file of it is not what was written, or of another version.
    """
    from datasets import load_from_disk

    cure = f"delete {folder} and add --resume: the rows are tokenized again"
    check_checksums(folder, cure)
    facts = json.loads((folder / "batching.json").read_text(encoding="utf-8"))
    if facts.keys() != {field.name for field in fields(Batching)}:
        raise DataError(f"{folder} was written by another version of aligner", cure)
    batching = Batching(**facts)
    held_out = load_from_disk(str(folder / "eval")) if (folder / "eval").is_dir() else None
    return TokenizedData(load_from_disk(str(folder / "train")), held_out, batching)


def _write(
    folder: Path, parts: list[Dataset], held_out: Dataset | None, batching: Batching
) -> None:
    """Write under a temporary name and rename, `batching.json` inside: a `prepared/` that is there
    is whole."""
    from datasets import concatenate_datasets

    train = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for stale in (unfinished, folder):
        if stale.exists():
            shutil.rmtree(stale)
    unfinished.mkdir(parents=True)
    train.save_to_disk(str(unfinished / "train"))
    if held_out is not None:
        held_out.save_to_disk(str(unfinished / "eval"))
    write_atomically(unfinished / "batching.json", dumps(asdict(batching)))
    write_checksums(unfinished)
    unfinished.rename(folder)


# --- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokenizing:
    """Encodes the rows of a split; too long and unusable ones go the way that the recipe says,
    counted."""

    data: Data
    rows: RowEncoder
    notes: RowNotes
    on_event: OnEvent | None
    folder: Path
    """Where columns wait that are no longer held in memory."""

    def split(self, rows: Sequence[Row], ledger: SplitLedger, name: str) -> tuple[Dataset, Lengths]:
        """Return the rows of a split as a dataset of the encoder's columns, and their lengths."""
        kept = _Kept(self.folder / name.replace(" ", "-"))
        broken: list[Problem] = []
        too_long: list[tuple[str, int]] = []
        for start in range(0, len(rows), TOGETHER):
            tell(self.on_event, StageProgress(f"tokenizing {name}", start, len(rows)))
            together = rows[start : start + TOGETHER]
            if self.rows.look_ahead is not None:
                self.rows.look_ahead(together)
            for row in together:
                self._add(row, kept, ledger, broken, too_long)
        tell(self.on_event, StageProgress(f"tokenizing {name}", len(rows), len(rows)))
        _refuse_broken(broken, self.data)
        refuse_too_long(too_long, kept.untruncated, self.data, len(rows))
        if not kept.lengths:
            raise DataError(
                f"no row of the {name} split can be trained on",
                "see data.json, and raise data.max_length",
            )
        kept.count(ledger, len(too_long))
        return kept.dataset(), kept.lengths

    def _add(
        self,
        row: Row,
        kept: _Kept,
        ledger: SplitLedger,
        broken: list[Problem],
        too_long: list[tuple[str, int]],
    ) -> None:
        data, cuts = self.data, self.data.on_too_long == "truncate"
        try:
            self.notes.check(row)
            encoded = self.rows.encode(row, data.max_length if cuts else None)
        except DataError as error:
            ledger.note_unusable(row.origin, error.message)
            broken.append(Problem(error.message, hint=error.hint))
            return
        if isinstance(encoded, SkipRow):
            ledger.note_unusable(row.origin, encoded.reason)
        elif encoded.num_untruncated > data.max_length and not cuts:
            too_long.append((row.origin, encoded.num_untruncated))
        else:
            self.notes.note(row, ledger)
            kept.add(encoded)


Lengths = Sequence[int]


class _Kept:
    """Encoded rows, counted; the columns of many wait in files of `folder`, so that memory holds
    two numbers of each row and the columns of the last ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lengths = array("i")
        self.untruncated = array("i")
        self.tokens = self.targets = self.cut_rows = self.cut_tokens = 0
        self._columns: dict[str, list[Any]] = {}
        self._held = 0
        self._parts: list[Dataset] = []

    def add(self, row: TokenizedRow) -> None:
        """Keep a row."""
        for key, value in row.columns.items():
            self._columns.setdefault(key, []).append(value)
        self.lengths.append(row.columns["length"])
        self.untruncated.append(row.num_untruncated)
        self.tokens += row.num_tokens
        self.targets += row.num_target
        self.cut_rows += row.num_truncated > 0
        self.cut_tokens += row.num_truncated
        self._held += row.num_tokens
        if self._held >= IN_MEMORY:
            self._store()

    def count(self, ledger: SplitLedger, dropped: int) -> None:
        """Put the numbers into the books."""
        ledger.count(
            rows=len(self.lengths),
            tokens=self.tokens,
            trained_tokens=self.targets,
            masked_tokens=self.tokens - self.targets,
            too_long_dropped=dropped,
            truncated_rows=self.cut_rows,
            truncated_tokens=self.cut_tokens,
            # where each epoch has its own rows: those of the last
            lengths=quantiles(self.lengths),
        )

    def dataset(self) -> Dataset:
        """Return all rows."""
        from datasets import Dataset, concatenate_datasets

        rest = [Dataset.from_dict(self._columns)] if self._columns else []
        parts = [*self._parts, *rest]
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)

    def _store(self) -> None:
        from datasets import Dataset

        place = self.folder / f"{len(self._parts)}"
        part = Dataset.from_dict(self._columns)
        part.save_to_disk(str(place))
        self._parts.append(Dataset.load_from_disk(str(place)))
        self._columns, self._held = {}, 0


def _refuse_broken(broken: list[Problem], data: Data) -> None:
    if broken and data.on_bad_row == "error":
        raise DataError(
            f"{len(broken):,} rows cannot be trained on",
            "fix them, or set data.on_bad_row=drop to leave them out (they are counted and "
            "listed in data.json)",
            broken,
        )


def refuse_too_long(
    too_long: list[tuple[str, int]], fitting: Sequence[int], data: Data, total: int
) -> None:
    """Refuse rows that are too long, if the recipe does: (origin, tokens) of each; `fitting`: the
    lengths of the others, of `total` rows together. Raises: DataError."""
    if too_long and data.on_too_long == "error":
        lengths = sorted([*fitting, *(length for _, length in too_long)])
        needed = {
            share: lengths[min(len(lengths) - 1, int(share * len(lengths)))]
            for share in (0.9, 0.99)
        }
        raise DataError(
            f"{len(too_long):,} of {total:,} rows are longer than "
            f"data.max_length={data.max_length} tokens "
            f"(the longest has {lengths[-1]:,}; 90% fit in {needed[0.9]:,}, 99% in "
            f"{needed[0.99]:,})",
            "raise data.max_length, or choose data.on_too_long=drop (or truncate, where whole "
            "answers are not needed); what is "
            "lost is counted",
            [Problem(f"{length:,} tokens", where=origin) for origin, length in too_long[:5]],
        )


def quantiles(values: Sequence[int]) -> list[int]:
    """Return the values at `QUANTILES`, shortest to longest."""
    ordered = sorted(values)
    return [
        ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] for share in QUANTILES
    ]
