"""The replay buffer of SAPO: pairs that were written, drawn again while the model changes.

It holds token ids alone, and a checkpoint holds it whole.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file


@dataclass(slots=True)
class Rewrite:
    """A pair for the buffer: `row` and `sample` say which answer of which row,
    `created_step` the step, `draws` how often it was used.

    `is_same`: what was written is what had stood in the window. `is_as_good`: a verifier found the
    rewrite no worse.
    """

    row: int
    sample: int
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    created_step: int
    draws: int = 0
    is_same: bool = False
    is_as_good: bool = False

    @property
    def is_identical(self) -> bool:
        """Whether the rewrite says the same, so that there is nothing to prefer.

        Both answers are then equal, and DPO's loss is log 2 without a gradient; or the rejected one
        is the beginning of the chosen one, where what follows the window was left out.
        """
        return self.is_same or self.chosen_ids == self.rejected_ids

    @property
    def is_useless(self) -> bool:
        """Whether nothing is to be learned from the pair."""
        return self.is_identical or self.is_as_good

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
NUMBERS = ("row", "sample", "created_step", "draws", "is_same")


class ReplayBuffer:
    """First in, first out; drawn with replacement, each entry with a weight of 1 / (1 + times
    drawn).

    With several processes every one holds the same buffer: `capacity` counts the pairs of all of
    them together (the authors' code holds 2,000 for each of eight processes).
    """

    def __init__(self, capacity: int) -> None:
        assert capacity >= 1
        self.capacity = capacity
        self.entries: deque[Rewrite] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, rewrites: Iterable[Rewrite]) -> None:
        """Put pairs in; the oldest go where there is no room."""
        self.entries.extend(rewrites)

    def draw(self, count: int, rng: random.Random) -> list[Rewrite]:
        """Return `count` pairs, and count that they were drawn."""
        assert self.entries, "there is nothing to draw"
        drawn = rng.choices(
            self.entries, weights=[1 / (1 + entry.draws) for entry in self.entries], k=count
        )
        for entry in drawn:
            entry.draws += 1
        return drawn

    def save(self, file: Path) -> None:
        """Write all entries as safetensors."""
        arrays: dict[str, Any] = {}
        for name in NUMBERS:
            arrays[name] = _numbers(getattr(entry, name) for entry in self.entries)
        for name in IDS:
            ids = [getattr(entry, name) for entry in self.entries]
            arrays[name] = _numbers(token for one in ids for token in one)
            arrays[f"{name}_lengths"] = _numbers(map(len, ids))
        save_file(arrays, str(file))

    def load(self, file: Path) -> None:
        """Take over the entries in a file that `save` wrote."""
        arrays = load_file(str(file))
        columns: dict[str, list[Any]] = {name: arrays[name].tolist() for name in NUMBERS}
        for name in IDS:
            ends = np.cumsum(arrays[f"{name}_lengths"])[:-1]
            columns[name] = [part.tolist() for part in np.split(arrays[name], ends)]
        names = list(columns)
        rows = zip(*columns.values(), strict=True) if columns["row"] else ()
        self.entries = deque(
            (Rewrite(**dict(zip(names, row))) for row in rows), maxlen=self.capacity
        )


def _numbers(values: Iterable[int]) -> Any:
    return np.fromiter(values, dtype=np.int64)
