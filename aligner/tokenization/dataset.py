"""From typed rows to the token datasets that trainers read, with every row and token counted on
the way.

Tokenized data are written below the run directory (`prepared/`) once, before any rank starts, and
read from there: ranks, and a resumed run, never tokenize again. How rows become batches is decided
here too, from the histogram of their lengths: packed, grouped by length, or neither, and the
decision comes with its reason.

Each method turns a row into columns by an encoder of its own (`encode.py` in its folder), which
says what they are. Counted here, and then dropped, are `tokens`, `trained`, `whole` (tokens before
a cut) and `cut`; `length` stays.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aligner.config.defaults import trainer_value
from aligner.config.recipe import Data, SftRecipe, TrainRecipe
from aligner.data.ledger import SplitLedger
from aligner.data.loading import Loaded
from aligner.data.rows import Row
from aligner.errors import DataError, Problem
from aligner.events import OnEvent, StageProgress, Warned, tell
from aligner.runs.files import check_checksums, dumps, write_atomically, write_checksums
from aligner.tokenization.control_tokens import set_control_tokens
from aligner.tokenization.row_notes import RowNotes

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[Row, int | None], dict[str, Any] | str]
"""A row and the length to cut it to (None: leave it whole) -> columns, or why nothing is left to
train."""

PROGRESS_EVERY = 500
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
WORTHWHILE_PADDING = 0.1
"""Share of padding in random batches above which something is done about it."""
STEPS_WORTH_PACKING = 200
"""Packing puts many rows into one step; below this many steps in an epoch it would change the
training too much."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether rows stay apart (None: it cannot be told), and why not, as a clause: `packed rows see
    each other ...`."""

    apart: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Batching:
    """How rows become batches: `packing`, `grouped` or neither, and why.

    Where each epoch has rows of its own, they follow one another in the dataset, and `passes`
    holds their numbers; `steps` is where training ends, if that is not their end.
    """

    packing: bool
    grouped: bool
    reason: str
    passes: list[int] | None = None
    steps: int | None = None


class Passes(Protocol):
    """Training rows that are made again for each epoch."""

    def rows(self, number: int) -> list[Row]:
        """Return the rows of a pass."""

    def told(self) -> str:
        """Say in a few words what was made of what."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Tokenized splits and how they are batched."""

    train: Dataset
    eval: Dataset | None
    batching: Batching


def prepare(
    recipe: TrainRecipe,
    loaded: Loaded,
    tokenizer: PreTrainedTokenizerBase,
    encode: Encode,
    folder: Path,
    on_event: OnEvent | None,
    passes: Passes | None = None,
    test_packing: Callable[[], Finding] | None = None,
) -> Prepared:
    """Tokenize both splits, decide on batches, count everything in the ledger, and write the result
    to `folder`.

    `encode` is the method's; `test_packing` is asked, where rows would be packed, whether the model
    keeps them apart. With `passes`, the training rows are those that they make for each epoch.
    Raises: DataError listing the rows that cannot be used: too long, or with nothing to train.
    """
    set_control_tokens(tokenizer, recipe.data.control_tokens)
    notes = RowNotes(recipe, tokenizer)
    ledger = loaded.ledger
    books = ledger.split("train")
    parts, lengths, batching = _training_parts(
        recipe, loaded, passes, encode, notes, books, on_event, test_packing
    )
    held_out = (
        _tokenise(loaded.eval, encode, notes, recipe.data, ledger.split("eval"), "eval", on_event)
        if loaded.eval
        else None
    )
    sequences = sum(map(len, parts))
    refuse_no_batch(recipe, sequences)
    if batching.packing:
        books.count(
            sequences=sequences, packed_fill=books.tokens / (sequences * recipe.data.max_length)
        )
    else:
        rows = trainer_value(recipe, "per_device_train_batch_size")
        books.count(
            padding_share=padding_share(lengths, rows, recipe.seed, grouped=batching.grouped)
        )
    if passes is not None:
        sizes = [len(part) for part in parts]
        batching = replace(batching, passes=sizes, steps=_steps_of(recipe, sizes))
    ledger.check()
    for name, split in ledger.splits.items():
        if (remark := notes.remark(split, name)) is not None:
            tell(on_event, Warned(remark))
    _write(folder, _joined(parts), held_out, batching)
    return load_prepared(folder)


def refuse_no_batch(recipe: TrainRecipe, rows: int) -> None:
    """Refuse `dataloader_drop_last` where it would drop everything there is. Raises: DataError."""
    batch = int(trainer_value(recipe, "per_device_train_batch_size")) * recipe.launch.num_processes
    if recipe.trainer.get("dataloader_drop_last") and rows < batch:
        raise DataError(
            f"trainer.dataloader_drop_last drops batches that are not full, and {rows:,} rows do "
            f"not fill one of {batch:,}",
            "drop the key, or lower trainer.per_device_train_batch_size",
        )


def _training_parts(
    recipe: TrainRecipe,
    loaded: Loaded,
    passes: Passes | None,
    encode: Encode,
    notes: RowNotes,
    books: SplitLedger,
    on_event: OnEvent | None,
    test_packing: Callable[[], Finding] | None,
) -> tuple[list[Dataset], list[int], Batching]:
    """Tokenize the training rows, or as many passes of made ones as training takes; pack them where
    that is decided.

    Returns the parts, the lengths of all rows, and how they are batched, which the first part
    decides.
    """
    parts: list[Dataset] = []
    lengths: list[int] = []
    batching: Batching | None = None
    while batching is None or (passes is not None and _wants_more(recipe, parts)):
        rows, name = loaded.train, "train"
        if passes is not None:
            rows, name = passes.rows(len(parts)), f"pass {len(parts) + 1}"
            books.made = (books.made or 0) + len(rows)
        part = _tokenise(rows, encode, notes, recipe.data, books, name, on_event)
        lengths += part["length"]
        if batching is None:
            batching = choose_batching(recipe, [int(n) for n in part["length"]], test_packing)
        parts.append(
            _pack(part, recipe.data.max_length, recipe.seed + len(parts))
            if batching.packing
            else part
        )
    if passes is not None:
        books.made_of = passes.told()
    return parts, lengths, batching


def _wants_more(recipe: TrainRecipe, parts: Sequence[Dataset]) -> bool:
    """Say whether training needs more than these passes."""
    max_steps = int(trainer_value(recipe, "max_steps"))
    if max_steps > 0:
        return sum(map(len, parts)) < max_steps * rows_per_step(recipe)
    return len(parts) < float(trainer_value(recipe, "num_train_epochs"))


def _joined(parts: Sequence[Dataset]) -> Dataset:
    from datasets import concatenate_datasets

    return parts[0] if len(parts) == 1 else concatenate_datasets(list(parts))


def rows_per_step(recipe: TrainRecipe) -> int:
    """Return the rows of an optimizer step over all processes."""
    batch = int(trainer_value(recipe, "per_device_train_batch_size"))
    return (
        batch
        * int(trainer_value(recipe, "gradient_accumulation_steps"))
        * recipe.launch.num_processes
    )


def _steps_of(recipe: TrainRecipe, sizes: Sequence[int]) -> int | None:
    """Where training ends that does not end with a pass: `max_steps`, or so much of the last
    epoch."""
    if (max_steps := int(trainer_value(recipe, "max_steps"))) > 0:
        return max_steps
    rest = float(trainer_value(recipe, "num_train_epochs")) % 1.0
    if not rest:
        return None
    return math.ceil((sum(sizes[:-1]) + rest * sizes[-1]) / rows_per_step(recipe))


def load_prepared(folder: Path) -> Prepared:
    """Read what `prepare` wrote.

    Raises: DataError when a file of it is not what was written.
    """
    from datasets import load_from_disk

    check_checksums(folder, f"delete {folder} and add --resume: the rows are tokenized again")
    batching = Batching(**json.loads((folder / "batching.json").read_text(encoding="utf-8")))
    held_out = load_from_disk(str(folder / "eval")) if (folder / "eval").is_dir() else None
    return Prepared(load_from_disk(str(folder / "train")), held_out, batching)


def _write(folder: Path, train: Dataset, held_out: Dataset | None, batching: Batching) -> None:
    """Write under a temporary name and rename, `batching.json` inside: a `prepared/` that is there
    is whole."""
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

COUNTED = ("tokens", "trained", "whole", "cut")


def _tokenise(
    rows: Sequence[Row],
    encode: Encode,
    notes: RowNotes,
    data: Data,
    ledger: SplitLedger,
    name: str,
    on_event: OnEvent | None,
) -> Dataset:
    """Encode every row of a split; too long and unusable ones go the way that the recipe says,
    counted."""
    from datasets import Dataset

    limit = data.max_length if data.on_too_long == "truncate" else None
    columns: dict[str, list[Any]] = {}
    broken: list[Problem] = []
    too_long: list[tuple[str, int]] = []
    for number, row in enumerate(rows):
        if on_event and number % PROGRESS_EVERY == 0:
            on_event(StageProgress(f"tokenizing {name}", number, len(rows)))
        try:
            notes.check(row)
            encoded = encode(row, limit)
        except DataError as error:
            ledger.note_unusable(row.origin, error.message)
            broken.append(Problem(error.message, hint=error.hint))
            continue
        if isinstance(encoded, str):
            ledger.note_unusable(row.origin, encoded)
        elif encoded["whole"] > data.max_length and data.on_too_long != "truncate":
            too_long.append((row.origin, encoded["whole"]))
        else:
            notes.note(row, ledger)
            for key, value in encoded.items():
                columns.setdefault(key, []).append(value)
    if on_event:
        on_event(StageProgress(f"tokenizing {name}", len(rows), len(rows)))
    _refuse_broken(broken, data)
    _refuse_too_long(too_long, columns.get("whole", []), data, len(rows))
    if not columns:
        raise DataError(
            f"no row of the {name} split can be trained on",
            "see data.json, and raise data.max_length",
        )
    _count(ledger, columns, len(too_long))
    return Dataset.from_dict({key: value for key, value in columns.items() if key not in COUNTED})


def _count(ledger: SplitLedger, columns: dict[str, list[Any]], dropped: int) -> None:
    tokens, trained = sum(columns["tokens"]), sum(columns["trained"])
    ledger.count(
        rows=len(columns["tokens"]),
        tokens=tokens,
        trained_tokens=trained,
        masked_tokens=tokens - trained,
        too_long_dropped=dropped,
        truncated_rows=sum(cut > 0 for cut in columns["cut"]),
        truncated_tokens=sum(columns["cut"]),
        lengths=quantiles(columns["length"]),  # where each pass has its own rows: those of the last
    )


def _refuse_broken(broken: list[Problem], data: Data) -> None:
    if broken and data.on_bad_row == "error":
        raise DataError(
            f"{len(broken):,} rows cannot be trained on",
            "fix them, or set data.on_bad_row=drop to leave them out (they are counted and "
            "listed in data.json)",
            broken,
        )


def _refuse_too_long(
    too_long: list[tuple[str, int]], fitting: Sequence[int], data: Data, total: int
) -> None:
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


# --- batches --------------------------------------------------------------------------------------


def choose_batching(
    recipe: TrainRecipe, lengths: Sequence[int], test_packing: Callable[[], Finding] | None = None
) -> Batching:
    """Decide how rows become batches, from their lengths (N,), and say why.

    `test_packing` is asked only where rows would be packed: whether the model would keep them
    apart.
    """
    asked = recipe.trainer.get("train_sampling_strategy")
    if isinstance(recipe, SftRecipe) and recipe.sft.packing is True:
        return Batching(True, False, "packed, as sft.packing asks")
    if asked is not None:
        return Batching(
            False, asked == "group_by_length", f"trainer.train_sampling_strategy={asked}, as asked"
        )
    batch = trainer_value(recipe, "per_device_train_batch_size")
    share = padding_share(lengths, batch, recipe.seed)
    if share < WORTHWHILE_PADDING:
        return Batching(False, False, f"random batches: only {share:.0%} of one is padding")
    if isinstance(recipe, SftRecipe) and recipe.sft.packing == "auto":
        steps = sum(lengths) // (recipe.data.max_length * rows_per_step(recipe))
        why = f"packing would leave only {steps:,} steps an epoch"
        if steps >= STEPS_WORTH_PACKING:
            finding = test_packing() if test_packing else None
            if finding is None or finding.apart:
                why = f"packing leaves {steps:,} steps"
                return Batching(
                    True, False, f"packed: {share:.0%} of a random batch is padding, and {why}"
                )
            why = finding.why
        return Batching(
            False, True, f"grouped by length: {share:.0%} of a random batch is padding, and {why}"
        )
    return Batching(False, True, f"grouped by length: {share:.0%} of a random batch is padding")


def padding_share(lengths: Sequence[int], batch: int, seed: int, *, grouped: bool = False) -> float:
    """Return the share of padding in batches of `batch` rows, drawn at random or sorted by
    length."""
    order = list(lengths)
    if grouped:
        order.sort()
    else:
        random.Random(seed).shuffle(order)
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    places = sum(max(rows) * len(rows) for rows in batches)
    return 1 - sum(order) / places if places else 0.0


def _pack(rows: Dataset, max_length: int, seed: int) -> Dataset:
    """Pack whole rows with TRL's best-fit-decreasing; none is longer than a sequence, so none is
    cut."""
    from trl import pack_dataset

    shuffled = rows.select_columns(["input_ids", "labels"]).shuffle(seed=seed)
    packed = pack_dataset(shuffled, max_length, "bfd")
    kept = sum(sum(lengths) for lengths in packed["seq_lengths"])
    assert kept == sum(rows["length"]), "packing lost tokens"
    return packed
