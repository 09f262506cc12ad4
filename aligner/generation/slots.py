"""A cache of keys and values whose rows come and go: one slot for each row that is decoded.

All rows end in the same column, and each begins where its length says. So a step writes one column
for all of them, without copying what is there; a newcomer is copied in so that it ends in that
column; a row that leaves gives its slot to the last one; and what is attended to is as wide as the
longest row that is left, not as the longest that ever was. Columns in front of a row hold anything
finite (zeros, or rows of before), which the mask hides.

It holds every token of a row, in layers with a sliding window too, where the mask hides what lies
before the window.

Legend: S slots, R rows in use (the first of the slots), H heads of keys and values, C columns, W
columns that are attended to, D size of a head, G prompts of one prefill, P their padded length.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Columns that are free after the cache was moved or has grown, at least: so many steps until that
is due again."""


class Slots(Cache):
    """The cache of the rows in use, for `past_key_values`. `lengths`: tokens of each row."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_SlotLayer(self) for _ in range(num_layers)])
        self.lengths: list[int] = []
        self.end = 0
        self.num_slots = 0
        self.columns = 0

    @property
    def start(self) -> int:
        """The first column that is attended to."""
        return self.end - max(self.lengths, default=0)

    def mask(self, device: torch.device) -> Tensor:
        """Return 1 for each column that a row attends to, and for the one that comes next,
        (R, W + 1)."""
        width = max(self.lengths)
        starts = width - torch.tensor(self.lengths, device=device)
        return (torch.arange(width + 1, device=device) >= starts[:, None]).long()

    def stepped(self) -> None:
        """Count the column that the last step has written."""
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def reserve(self, rows: int, longest: int, prompt: DynamicCache) -> None:
        """Have room for so many new rows, the longest of so many tokens, before they are added.
        `prompt`: the cache of a prefill, which shows what keys and values are like."""
        self._make_room(len(self.lengths) + rows, longest, prompt)

    def add(self, prompt: DynamicCache, index: int, length: int) -> None:
        """Copy a prompt of a prefill, padded on the left, into a new row that is reserved."""
        slot, columns = len(self.lengths), slice(self.end - length, self.end)
        for layer, source in zip(self.layers, prompt.layers, strict=True):
            layer.keys[slot, :, columns] = source.keys[index, :, -length:]
            layer.values[slot, :, columns] = source.values[index, :, -length:]
        self.lengths.append(length)

    def remove(self, row: int) -> None:
        """Give the slot of a row to the last row, which moves."""
        length = self.lengths.pop()
        last = len(self.lengths)
        if row == last:
            return
        self.lengths[row] = length
        columns = slice(self.end - length, self.end)
        for layer in self.layers:
            layer.keys[row, :, columns] = layer.keys[last, :, columns]
            layer.values[row, :, columns] = layer.values[last, :, columns]

    def before_step(self) -> None:
        """Have a free column for the next token."""
        self._make_room(len(self.lengths), 0, None)

    def _make_room(self, rows: int, length: int, prompt: DynamicCache | None) -> None:
        """Have slots for so many rows, columns for one of this length, and a free one behind."""
        width = max(length, *self.lengths, 0)
        if rows <= self.num_slots and length <= self.end < self.columns:
            return
        start, end = self.start, width
        slots = max(rows, self.num_slots)
        columns = max(self.columns, width + ROOM)
        for layer, source in zip(self.layers, prompt.layers if prompt else self.layers):
            layer.move(slice(start, self.end), end, (slots, columns), source)
        self.num_slots, self.columns, self.end = slots, columns, end


class _SlotLayer(DynamicLayer):
    """The keys (S, H, C, D) and values of one layer of the model."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        # A cycle would keep all keys and values, through the update that follows a rollout, until
        # the garbage collector looks.
        self.slots: Any = weakref.proxy(slots)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the next column (R, H, 1, D), and return all that is attended to (R, H, W, D)."""
        slots = self.slots
        rows, start, end = len(slots.lengths), slots.start, slots.end
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        seen = slice(start, end + 1)
        return self.keys[:rows, :, seen], self.values[:rows, :, seen]

    def get_seq_length(self) -> int:
        return max(self.slots.lengths, default=0)

    def move(self, seen: slice, end: int, size: tuple[int, int], source: DynamicLayer) -> None:
        """Put the columns in use where they end at `end`, in tensors of (slots, columns) of this
        size, made like those of `source` where they must be."""
        for name in ("keys", "values"):
            old, like = getattr(self, name), getattr(source, name)
            kept = None if old is None else old[:, :, seen].clone()
            new = old
            if old is None or (old.shape[0], old.shape[2]) != size:
                new = like.new_zeros(size[0], like.shape[1], size[1], like.shape[3])
                setattr(self, name, new)
            if kept is not None:
                new[: len(kept), :, end - kept.shape[2] : end] = kept
        self.is_initialized = True


def bytes_per_token(prompts: DynamicCache) -> int:
    """Return what one token of one row takes in the cache, as a prefill shows it."""
    tensors: Sequence[Tensor] = [
        tensor for layer in prompts.layers for tensor in (layer.keys, layer.values)
    ]
    return sum(tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in tensors)
