"""The order in which rows are trained: a function of the seed and the epoch alone.

transformers' own length-grouped sampler draws from the global random state, so a resumed run would
see other batches; this one does not. Grouping by length works on whole optimizer steps, so the rows
of a step do not depend on how many processes or accumulation steps share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

STEPS_IN_A_POOL = 50
"""Rows are sorted by length within pools of this many steps, so that batches still differ from
epoch to epoch."""


class SeededSampler(Sampler[int]):
    """Yield every row once an epoch: shuffled, or shuffled with rows of similar length next to each
    other.

    `lengths` (N,) turns grouping on; `rows_per_step` is the number of rows of one optimizer step
    over all processes. The step with the longest row comes first, so that a step that does not fit
    into memory fails at once. Blank rows, which follow the others in the dataset and count for
    nothing, come last in every epoch. With `epoch_sizes`, the dataset holds so many rows after one
    another for each epoch, and is run through once: they come in turn, each in an order of its
    own.
    """

    def __init__(
        self,
        num_rows: int,
        seed: int,
        *,
        lengths: Sequence[int] | None = None,
        rows_per_step: int = 1,
        num_padding_rows: int = 0,
        epoch_sizes: Sequence[int] | None = None,
    ) -> None:
        assert lengths is None or len(lengths) == num_rows
        assert epoch_sizes is None or sum(epoch_sizes) == num_rows
        self.epoch_sizes = epoch_sizes
        self.num_rows, self.seed, self.lengths, self.rows_per_step = (
            num_rows,
            seed,
            lengths,
            rows_per_step,
        )
        self.num_padding_rows = num_padding_rows
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows + self.num_padding_rows

    def __iter__(self) -> Iterator[int]:
        order: list[int] = []
        waiting: list[int] = []  # of an epoch, what makes no whole step
        start = 0
        epoch_sizes = self.epoch_sizes or [self.num_rows]
        for number, size in enumerate(epoch_sizes):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch + number)
            rows = [*waiting, *(start + torch.randperm(size, generator=generator)).tolist()]
            start += size
            is_last = number == len(epoch_sizes) - 1
            whole = len(rows) if is_last else len(rows) // self.rows_per_step * self.rows_per_step
            rows, waiting = rows[:whole], rows[whole:]
            order += rows if self.lengths is None else self._grouped(rows, generator)
        return iter([*order, *range(self.num_rows, len(self))])

    def _grouped(self, order: list[int], generator: torch.Generator) -> list[int]:
        lengths = self.lengths
        assert lengths is not None
        pool = self.rows_per_step * STEPS_IN_A_POOL
        pools = [
            sorted(order[i : i + pool], key=lambda row: -lengths[row])
            for i in range(0, len(order), pool)
        ]
        rows = [row for one in pools for row in one]
        steps = [rows[i : i + self.rows_per_step] for i in range(0, len(rows), self.rows_per_step)]
        # Only the last step may be short, and it has to stay last: batches are cut from one long
        # list.
        full = [step for step in steps if len(step) == self.rows_per_step]
        short = [step for step in steps if len(step) < self.rows_per_step]
        mixed = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
        if mixed:
            longest = max(range(len(mixed)), key=lambda i: max(lengths[row] for row in mixed[i]))
            mixed.insert(0, mixed.pop(longest))
        return [row for step in [*mixed, *short] for row in step]
