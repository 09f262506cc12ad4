"""A function that was given as the objective, tried on three pairs before anything is trained with
it."""

from __future__ import annotations

import torch
from torch import Tensor

from aligner.config.callables import name_of
from aligner.errors import RecipeError
from aligner.losses.shape import pairs_at
from aligner.losses.types import Objective, Settings

RIGHT = "it takes (PairLogps, Settings) and returns one loss for each pair, a tensor of shape (N,)"


def check_callable(objective: Objective, settings: Settings) -> None:
    """Try an objective on pairs at z = -0.5, 0 and 0.5.

    Raises: RecipeError when it fails, or gives anything but three finite losses that have a
    gradient.
    """
    z = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
    name = f"the objective `{name_of(objective)}`"
    try:
        losses = objective(pairs_at(z, settings.beta), settings)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise RecipeError(f"{name} failed on three pairs: {reason}", RIGHT) from error
    if wrong := _wrong(losses, len(z)):
        raise RecipeError(f"{name} {wrong}", RIGHT)


def _wrong(losses: object, number: int) -> str:
    """What is wrong with the losses of so many pairs; empty for nothing."""
    if not isinstance(losses, Tensor):
        return f"returned `{type(losses).__name__}`, not a tensor"
    if losses.shape != (number,):
        return f"returned a tensor of shape {tuple(losses.shape)} for {number} pairs"
    if not bool(losses.isfinite().all()):
        return f"returned losses that are not finite: {losses.tolist()}"
    if not losses.requires_grad:
        return "returned losses without a gradient, so nothing would be trained"
    return ""
