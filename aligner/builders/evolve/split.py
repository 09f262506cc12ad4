"""The instructions that an optimization works with: some to look at, others to compare methods on.

Both are drawn at random, and no instruction is in both: those that say the same in other letters
count as one, since a method that was rewritten because of one would be compared on the other. (The
authors' code shuffles one list twice, so that both overlap, and compares on others in each step.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from aligner.builders.evolve.recipe import Optimization
from aligner.data.normal_text import normal_text
from aligner.errors import DataError


@dataclass(frozen=True)
class Split:
    """`train` is drawn from in each step; `development` is the same in all of them."""

    train: tuple[str, ...]
    development: tuple[str, ...]

    def batch(self, step: int, size: int, seed: int) -> list[str]:
        """Return the instructions that a step looks at."""
        return Random(f"{seed} batch {step}").sample(self.train, size)


def split_seeds(seeds: Sequence[str], settings: Optimization, seed: int) -> Split:
    """Draw both.

    Raises: DataError when there are too few different instructions.
    """
    different: dict[str, str] = {}
    for text in seeds:
        if text.strip():
            different.setdefault(normal_text(text) or text.strip(), text)
    found = list(different.values())
    Random(f"{seed} split").shuffle(found)
    found = found[: settings.seeds]
    needed = settings.development_size + settings.batch_size
    if len(found) < needed:
        raise DataError(
            f"data.train has {len(found)} different instructions to optimize with, and "
            f"development_size {settings.development_size} and batch_size {settings.batch_size} "
            f"of evolve.optimization need {needed}",
            "add seeds, lower development_size, or set evolve.optimization.steps=0",
        )
    return Split(
        tuple(found[settings.development_size :]), tuple(found[: settings.development_size])
    )
