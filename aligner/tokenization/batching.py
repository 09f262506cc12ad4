"""How rows become batches, from the histogram of their lengths: packed, grouped by length, or
neither. The decision comes with its reason."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aligner.config.defaults import trainer_value
from aligner.config.recipe import TrainRecipe
from aligner.errors import DataError
from aligner.methods.catalogue import trainer_of

if TYPE_CHECKING:
    from datasets import Dataset

Packing = bool | Literal["auto"]

WORTHWHILE_PADDING = 0.1
"""Share of padding in random batches above which something is done about it."""


STEPS_WORTH_PACKING = 200
"""Packing puts many rows into one step; below this many steps in an epoch it would change the
training too much."""


@dataclass(frozen=True, slots=True)
class RowsApart:
    """Whether rows stay apart (None: it cannot be told), and why not, as a clause: `packed rows see
    each other ...`."""

    apart: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Batching:
    """How rows become batches: `packing`, `grouped` or neither, and why.

    Where each epoch has rows of its own, they follow one another in the dataset, and `epoch_sizes`
    holds their numbers; `steps` is where training ends, if that is not their end.
    """

    packing: bool
    grouped: bool
    reason: str
    epoch_sizes: list[int] | None = None
    steps: int | None = None


def refuse_no_batch(recipe: TrainRecipe, rows: int) -> None:
    """Refuse `dataloader_drop_last` where it would drop everything there is. Raises: DataError."""
    batch = int(trainer_value(recipe, "per_device_train_batch_size")) * recipe.launch.num_processes
    if recipe.trainer.get("dataloader_drop_last") and rows < batch:
        raise DataError(
            f"trainer.dataloader_drop_last drops batches that are not full, and {rows:,} rows do "
            f"not fill one of {batch:,}",
            "drop the key, or lower trainer.per_device_train_batch_size",
        )


def rows_per_step(recipe: TrainRecipe) -> int:
    """Return the rows of an optimizer step over all processes."""
    batch = int(trainer_value(recipe, "per_device_train_batch_size"))
    return (
        batch
        * int(trainer_value(recipe, "gradient_accumulation_steps"))
        * recipe.launch.num_processes
    )


def total_steps(
    recipe: TrainRecipe,
    sequences: int,
    epoch_sizes: Sequence[int] | None = None,
    stop: int | None = None,
) -> int:
    """Return the optimizer steps of the training.

    With `epoch_sizes`, `sequences` counts those of all epochs together, and `stop` is the step to
    stop at, if there is one.
    """
    repeats = trainer_of(recipe.method).repeats(recipe)
    an_epoch = -(-sequences // rows_per_step(recipe)) * repeats
    if epoch_sizes is not None:
        return stop or an_epoch
    if (max_steps := int(trainer_value(recipe, "max_steps"))) > 0:
        return max_steps
    return -(-int(an_epoch * float(trainer_value(recipe, "num_train_epochs")) * 1000) // 1000)


def last_step(recipe: TrainRecipe, sizes: Sequence[int]) -> int | None:
    """Where training ends that does not end with an epoch: `max_steps`, or so much of the last
    epoch."""
    if (max_steps := int(trainer_value(recipe, "max_steps"))) > 0:
        return max_steps
    rest = float(trainer_value(recipe, "num_train_epochs")) % 1.0
    if not rest:
        return None
    return math.ceil((sum(sizes[:-1]) + rest * sizes[-1]) / rows_per_step(recipe))


def choose_batching(
    recipe: TrainRecipe,
    lengths: Sequence[int],
    packing: Packing = False,
    test_packing: Callable[[], RowsApart] | None = None,
) -> Batching:
    """Decide how rows become batches, from their lengths (N,), and say why.

    `packing` says whether the method packs: always, never, or where it pays. `test_packing` is
    asked only where rows would be packed: whether the model would keep them apart.
    """
    asked = recipe.trainer.get("train_sampling_strategy")
    if packing is True:
        return Batching(True, False, "packed, as sft.packing asks")
    if asked is not None:
        return Batching(
            False, asked == "group_by_length", f"trainer.train_sampling_strategy={asked}, as asked"
        )
    batch = trainer_value(recipe, "per_device_train_batch_size")
    share = padding_share(lengths, batch, recipe.seed)
    if share < WORTHWHILE_PADDING:
        return Batching(False, False, f"random batches: only {share:.0%} of one is padding")
    if packing == "auto":
        steps = sum(lengths) // (recipe.data.max_length * rows_per_step(recipe))
        why = f"packing would leave only {steps:,} steps an epoch"
        if steps >= STEPS_WORTH_PACKING:
            found = test_packing() if test_packing else None
            if found is None or found.apart:
                why = f"packing leaves {steps:,} steps"
                return Batching(
                    True, False, f"packed: {share:.0%} of a random batch is padding, and {why}"
                )
            why = found.why
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


def pack(rows: Dataset, max_length: int, seed: int) -> Dataset:
    """Pack whole rows with TRL's best-fit-decreasing; none is longer than a sequence, so none is
    cut."""
    from trl import pack_dataset

    shuffled = rows.select_columns(["input_ids", "labels"]).shuffle(seed=seed)
    packed = pack_dataset(shuffled, max_length, "bfd")
    kept = sum(sum(lengths) for lengths in packed["seq_lengths"])
    assert kept == sum(rows["length"]), "packing lost tokens"
    return packed
