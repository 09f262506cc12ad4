"""How much memory a training takes at its peak, itemised, for one device.

    estimate(recipe, cuda=True).peak_bytes
    estimate(recipe, row_lengths(rows), cuda=True)  # `row_lengths` stands in `footprint`

Sizes follow from the model's config alone. What a training consists of, its method says
(`footprint`); what the parts take, follows from how models are computed (`shape`, `numbers`,
`activations`, `optimizers`). Each phase is looked at where it takes most: an update where the
backward pass begins, and holds all activations, and where it ends, and holds all gradients.

Measured on a CPU, against the peak of the allocator of whole trainings, in
`benchmarks/RESULTS.md`. No figure for GPUs was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from aligner.config.recipe import TrainRecipe
from aligner.errors import UsageError
from aligner.memory.footprint import Footprint, Lengths, SaysMemory
from aligner.memory.parts import Parts, total
from aligner.memory.training import training_of
from aligner.methods.catalogue import METHODS

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

LEAST_MEMORY = 2**20
"""Bytes: who names fewer has left the unit out."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of one device. `parts` are alive at the peak, which is in the phase `phase`;
    `phases`: each phase at its own peak; `notes`: what is not counted, and what is assumed."""

    parts: Parts
    phase: str
    phases: Mapping[str, Parts]
    notes: tuple[str, ...]

    @property
    def peak_bytes(self) -> int:
        """The most that is in memory at once."""
        return total(self.parts)


def estimate(recipe: TrainRecipe, lengths: Lengths | None = None, *, cuda: bool) -> Estimate:
    """Return the memory that a training takes on each of its devices.

    `lengths` are those of its rows; without them each row is taken to be `data.max_length` tokens
    long, all of them trained. `cuda`: for a GPU that computes in bfloat16, else for a CPU; there
    bfloat16 is counted where the recipe asks for it.

    Raises: RecipeError when the model's config cannot be read.
    """
    lengths = lengths or Lengths(recipe.data.max_length)
    training = training_of(recipe, footprint_of(recipe, lengths), cuda=cuda)
    phases = dict(training.phases())
    phase = max(phases, key=lambda name: total(phases[name]))
    return Estimate(phases[phase], phase, phases, tuple(training.notes(lengths)))


def footprint_of(recipe: TrainRecipe, lengths: Lengths) -> Footprint:
    """Return what a training consists of, as its method says."""
    steps: SaysMemory = import_module(f"{METHODS[recipe.method].folder}.steps").STEPS
    return steps.memory(recipe, lengths)


def parse_memory(text: str) -> int:
    """Return the bytes that `24GB`, `24GiB`, `80g` or a number of bytes mean.

    Memory is sold in powers of 1024 under either name, so both mean 1024 here. Raises: UsageError.
    """
    found = SIZE.fullmatch(text.strip())
    size = float(found[1]) * 1024 ** POWERS[found[2].lower()] if found else 0.0
    if size < LEAST_MEMORY:
        number = found[1] if found and found[1] != "0" else "24"
        raise UsageError(f"{text!r} is no amount of memory", f"write {number}GB, for example")
    return int(size)
