"""Classic Evol-Instruct (arXiv 2304.12244): fixed operations in depth and breadth, one drawn for
each row and round. The baseline of an optimized method; nothing is measured or rewritten.

As in the paper, breadth is one operation beside those in depth, and each is as likely. Words and
contract are our own; the elimination of failed evolutions is that of `failures.py` and of the
checks on finished rows.
"""

from __future__ import annotations

from random import Random

from aligner.builders.evolve.contract import EvolvingMethod
from aligner.builders.evolve.prompts import BREADTH, DEPTH, DEPTH_LIMITS

_MORE = ", not counting what you give it to work on"

OPERATIONS: dict[str, EvolvingMethod] = {
    name: EvolvingMethod(
        f"{what} {DEPTH_LIMITS.format(more=_MORE if name == 'input' else '')}", note=name
    )
    for name, what in DEPTH.items()
}
OPERATIONS["breadth"] = EvolvingMethod(BREADTH, note="breadth")
"""Operation -> its method."""


def draw_operation(seed: int, row: str, round_: int = 1) -> EvolvingMethod:
    """Return the operation for a row, by its id, in a round; `note` is its name. The same ever
    again, whatever else is evolved, and in whatever order."""
    name = Random(f"{seed} operation {round_} {row}").choice(list(OPERATIONS))
    return OPERATIONS[name]
