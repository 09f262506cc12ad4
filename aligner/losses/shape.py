"""The shape of an objective over z = beta * rho, the scaled margin: its curve, slope, turning
points and jumps.

An objective is followed along one path, on which chosen and rejected answers move by the same
amount in opposite directions from equal reference log-probabilities, all of them below zero. The
answers have one token each, or as many as is asked for. One that reads more than z (each answer's
own ratio, the policy alone) may run otherwise elsewhere. At each z stand `COMPANY` equal pairs, so
that statistics of a batch exist.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from aligner.losses.types import Objective, PairLogps, Settings

REACH = 10.0
FAR = 1000.0
COMPANY = 8
LEVEL = 1e-7
"""Slopes below this are none: they are what float32 leaves of zero."""


class Turn(NamedTuple):
    """Where the slope changes its sign; `kind` is "minimum" or "maximum"."""

    z: float
    loss: float
    kind: str


class Jump(NamedTuple):
    """Where the loss is not continuous: it changes by `size`."""

    z: float
    size: float


def pairs_at(z: Tensor, beta: float, length: float = 1.0) -> PairLogps:
    """Return pairs whose beta * rho is z (N,): equal references, policy moved by half of rho each
    way, none above zero.

    The references are the same for all |z| up to `REACH`, so that nothing but rho differs along a
    path.
    """
    rho = z / beta
    reach = REACH if float(z.detach().abs().max()) <= REACH else FAR
    reference = torch.full_like(rho.detach(), -1.0 - reach / beta / 2)
    lengths = torch.full_like(reference, length)
    return PairLogps(
        reference + rho / 2, reference - rho / 2, reference, reference.clone(), lengths, lengths
    )


def run_over(
    objective: Objective,
    settings: Settings,
    z: Tensor,
    reads_batch: bool = True,
    length: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return loss and d loss / dz, each (N,), at z (N,), for answers of `length` tokens.

    `reads_batch`: pairs may see each other, so each z has a batch of its own and moves as a whole;
    slower.
    """
    if reads_batch:
        return _with_company(objective, settings, z, length)
    z = z.clone().requires_grad_()
    loss = objective(pairs_at(z, settings.beta, length), settings)
    (slope,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), slope


def _with_company(
    objective: Objective, settings: Settings, z: Tensor, length: float
) -> tuple[Tensor, Tensor]:
    losses, slopes = [], []
    for one in z:
        leaf = one.clone().requires_grad_()
        loss = objective(pairs_at(leaf.expand(COMPANY), settings.beta, length), settings).mean()
        slopes.append(torch.autograd.grad(loss, leaf)[0])
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(slopes)


def turns(z: Tensor, loss: Tensor, slope: Tensor) -> list[Turn]:
    """Return where the slope changes its sign, as measured at ascending z (N,); a flat part between
    is passed over."""
    steep = torch.nonzero(slope.abs() > LEVEL).flatten().tolist()
    return list(_turns(steep, z.tolist(), loss.tolist(), slope.tolist()))


def _turns(
    steep: list[int], z: list[float], loss: list[float], slope: list[float]
) -> Iterator[Turn]:
    for i, j in itertools.pairwise(steep):
        if slope[i] * slope[j] < 0:
            place = z[i] + slope[i] / (slope[i] - slope[j]) * (z[j] - z[i])
            falls = slope[i] < 0
            yield Turn(
                place, (min if falls else max)(loss[i], loss[j]), "minimum" if falls else "maximum"
            )


def jumps(z: Tensor, loss: Tensor, slope: Tensor) -> list[Jump]:
    """Return where the loss steps by far more than its slopes on both sides explain, as measured at
    ascending z (N,)."""
    step, width = loss.diff(), z.diff()
    explained = torch.maximum(slope[1:].abs(), slope[:-1].abs()) * width
    odd = step.abs() > 5 * explained + 1e-3 * slope.abs().mean() + 1e-5 * loss[1:].abs()
    return [
        Jump(float(z[i] + width[i] / 2), float(step[i]))
        for i in torch.nonzero(odd).flatten().tolist()
    ]
