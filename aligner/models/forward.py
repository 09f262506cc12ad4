"""Forward passes over many sequences: sorted by length, in batches of a number of tokens, each
sequence once.

What comes out does not depend on the order of the sequences, nor (but for rounding) on which others
share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

_CHUNK = 1024
"""Positions whose logits are turned into entropies at a time."""

Read = Callable[[dict[str, torch.Tensor], Sequence[int]], Sequence[T]]
"""A padded batch (`input_ids`, `attention_mask`, `position_ids`) and the numbers of its sequences
-> what is read of each."""


def in_batches(
    sequences: Sequence[Sequence[int]],
    read: Read[T],
    pad_token_id: int,
    batch_tokens: int,
    device: Any,
    *,
    left: bool = False,
    starts: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[T]:
    """Return what `read` finds in each sequence, in their order; equal sequences (with equal
    `starts`) are read once.

    Padding is on the right, or on the `left` for who reads the last place of all rows.
    `on_progress(done, total)` counts different sequences.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, ids in enumerate(sequences):
        places.setdefault((*ids, -1 if starts is None else starts[place]), []).append(place)
    found: list[Any] = [None] * len(sequences)
    done = 0
    for batch in _batches(sorted(places, key=lambda key: (-len(key), key)), batch_tokens):
        tensors = pad([key[:-1] for key in batch], pad_token_id, left=left)
        tensors = {name: value.to(device) for name, value in tensors.items()}
        for key, value in zip(batch, read(tensors, [places[key][0] for key in batch])):
            for place in places[key]:
                found[place] = value
        done += len(batch)
        if on_progress:
            on_progress(done, len(places))
    return found


def _batches(
    ordered: Sequence[tuple[int, ...]], batch_tokens: int
) -> Iterator[list[tuple[int, ...]]]:
    """Sequences with their start behind them: longest first, so that what does not fit into memory
    is known at once."""
    start = 0
    while start < len(ordered):
        rows = max(1, batch_tokens // max(1, len(ordered[start]) - 1))
        yield list(ordered[start : start + rows])
        start += rows


def pad(
    sequences: Sequence[Sequence[int]], pad_token_id: int, *, left: bool = False
) -> dict[str, torch.Tensor]:
    """Stack sequences into `input_ids`, `attention_mask` and `position_ids`, each (B, T), T the
    longest.

    Padding is known by the mask, never by its id.
    """
    width = max(map(len, sequences))
    input_ids = torch.full((len(sequences), width), pad_token_id)
    attention_mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for i, ids in enumerate(sequences):
        where = slice(width - len(ids), width) if left else slice(0, len(ids))
        input_ids[i, where] = torch.tensor(list(ids), dtype=torch.long)
        attention_mask[i, where] = 1
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}


def answer_entropies(
    model: PreTrainedModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_token_id: int,
    batch_tokens: int = 16384,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """Return, for each (prompt ids, answer ids), the entropy in nats of what every token of the
    answer was drawn from."""

    def read(batch: dict[str, Any], rows: Sequence[int]) -> list[list[float]]:
        starts = [len(sequences[row][0]) for row in rows]
        stops = [start + len(sequences[row][1]) for start, row in zip(starts, rows)]
        first = max(0, min(starts) - 1)
        width = batch["input_ids"].shape[1]
        logits = model(
            **batch, logits_to_keep=width - first, use_cache=False
        ).logits  # (B, T - first, V)
        return [
            _entropies(logits[i, start - 1 - first : stop - 1 - first]) if start else [0.0] * stop
            for i, (start, stop) in enumerate(zip(starts, stops))
        ]

    whole, starts = (
        [[*prompt, *answer] for prompt, answer in sequences],
        [len(prompt) for prompt, _ in sequences],
    )
    with torch.no_grad():
        return in_batches(
            whole,
            read,
            pad_token_id,
            batch_tokens,
            model.device,
            starts=starts,
            on_progress=on_progress,
        )


def _entropies(logits: Any) -> list[float]:
    """(T, V) -> T entropies in nats, a part at a time in float32."""
    found = []
    for part in logits.split(_CHUNK):
        logps = part.float().log_softmax(-1)
        found.append(-(logps.exp() * logps).sum(-1))
    return torch.cat(found).tolist() if found else []
