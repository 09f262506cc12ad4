"""Whether ratings exist: who can be compared with whom, and who never lost to the rest, or never
won.

In the graph with an edge from loser to winner (a tie has both), ratings are comparable where the
graph hangs together, and finite where each model can be reached from each other one. A model that
never lost to the rest has a rating without an upper end, and one that never won has none below.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from aligner.arena.votes import Integers

Flags = npt.NDArray[np.bool_]
Matrix = npt.NDArray[np.float32]

Bound = Literal["", "at_least", "at_most", "unplaced"]


def reachable(beaten_by: Matrix) -> Flags:
    """From each model to each, along edges from loser to winner; of one graph or of many at
    once."""
    count = beaten_by.shape[-1]
    paths = (beaten_by > 0) | np.eye(count, dtype=bool)
    steps = 1
    while steps < count - 1:
        paths = np.matmul(paths, paths, dtype=np.float32) > 0
        steps *= 2
    return paths


def is_strong(beaten_by: Matrix) -> Flags:
    """Whether finite ratings exist, for each graph of a stack."""
    return np.asarray(reachable(beaten_by).all(axis=(-2, -1)))


def islands(beaten_by: Matrix) -> list[list[int]]:
    """Groups of models without a battle between them, the largest first."""
    paths = reachable(beaten_by + beaten_by.T)
    groups = {tuple(np.flatnonzero(row).tolist()) for row in paths}
    return sorted((list(group) for group in groups), key=lambda group: (-len(group), group))


def bounds(beaten_by: Matrix, played: Integers, anchor: int | None) -> list[Bound]:
    """For each model whether its rating is an end that is not there.

    Ratings are relative, so a group of models that is finite among itself is the measure: that of
    the anchor, else the largest, else the one that played most. Who only beats it is `at_least`
    what was computed, who only loses to it `at_most`, and the rest is `unplaced`.
    """
    paths = reachable(beaten_by)
    mutual = paths & paths.T
    if mutual.all():
        return [""] * len(paths)
    if anchor is None:
        sizes = mutual.sum(axis=1)
        if sizes.max() == 1:
            return _ends(paths)
        anchor = int(np.lexsort((played, sizes))[-1])
    found: list[Bound] = []
    for model in range(len(paths)):
        above, below = bool(paths[anchor, model]), bool(paths[model, anchor])
        found.append(
            "" if above and below else "at_least" if above else "at_most" if below else "unplaced"
        )
    return found


def _ends(paths: Flags) -> list[Bound]:
    """Where no two models are finite against each other: who is never beaten, and who never
    wins."""
    found: list[Bound] = []
    for model in range(len(paths)):
        is_top, is_bottom = paths[model].sum() == 1, paths[:, model].sum() == 1
        found.append("at_least" if is_top else "at_most" if is_bottom else "unplaced")
    return found
