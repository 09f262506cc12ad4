"""Every objective of the catalogue as a row and as a curve: `aligner dpo --loss-table`.

An objective is drawn along the path of `aligner.losses.shape`; for one that reads more than z that
is one cut through it. One that follows reward models is drawn for a pair whose rewards differ by 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aligner.config.loss_names import REFERENCE_FREE_LOSSES
from aligner.losses.catalogue import BATCH_DEPENDENT, OBJECTIVES, REWARD_OBJECTIVES
from aligner.losses.shape import Jump, Turn, jumps, run_over, turns
from aligner.losses.types import Objective, PairLogps, Settings

END = 6.0
POINTS = 2401
POINTS_IN_COMPANY = 241


@dataclass(frozen=True)
class Shape:
    """How an objective runs over z: its curve as points (z, loss), the slope where training starts,
    turns and jumps."""

    curve: list[tuple[float, float]]
    slope_at_start: float
    turns: list[Turn]
    jumps: list[Jump]


@dataclass(frozen=True)
class Row:
    """One objective of the table."""

    name: str
    shape: Shape
    reads_batch: bool
    reads_reference: bool


def shape_of(objective: Objective, settings: Settings, reads_batch: bool = True) -> Shape:
    """Return the shape of an objective between z = -6 and 6."""
    z = torch.linspace(-END, END, POINTS_IN_COMPANY if reads_batch else POINTS)
    loss, slope = run_over(objective, settings, z, reads_batch)
    return Shape(
        curve=list(zip(z.tolist(), loss.tolist()))[:: 1 if reads_batch else 12],
        slope_at_start=float(run_over(objective, settings, torch.zeros(1))[1]),
        turns=turns(z, loss, slope),
        jumps=jumps(z, loss, slope),
    )


def loss_table(settings: Settings) -> list[Row]:
    """Describe every objective of the catalogue; `exo_pair`, which needs soft labels, with a
    smoothing of 0.001."""
    soft = replace(settings, label_smoothing=settings.label_smoothing or 0.001)
    rewarded = {name: _at_a_gap_of_one(objective) for name, objective in REWARD_OBJECTIVES.items()}
    return [
        Row(
            name,
            shape_of(objective, soft if name == "exo_pair" else settings, name in BATCH_DEPENDENT),
            name in BATCH_DEPENDENT,
            name not in REFERENCE_FREE_LOSSES,
        )
        for name, objective in {**OBJECTIVES, **rewarded}.items()
    ]


def _at_a_gap_of_one(objective: Objective) -> Objective:
    def drawn(pairs: PairLogps, settings: Settings) -> Tensor:
        return objective(replace(pairs, target=torch.ones_like(pairs.chosen)), settings)

    return drawn
