"""The loss that keeps the experts of a mixture equally busy, where an architecture has one.

TRL adds it to the loss of SFT wherever a configuration has a weight for it. Whether the
architecture computes such a loss at all is asked of its own code, since some have the weight and no
loss, and what TRL's formula reads is given the names that it looks for.
"""

from __future__ import annotations

import sys
from typing import Any

from aligner.errors import RecipeError
from aligner.models.adapter_kinds import base_under_adapter

OWN_LOSS = "load_balancing_loss_func"
"""What transformers calls the function in the modules of those architectures that train with it."""

KEY = "router_aux_loss_coef"


def has_router_loss(model: Any) -> bool:
    """Say whether the code of a model computes a loss of its router."""
    base = base_under_adapter(model)
    return any(hasattr(sys.modules.get(part.__module__), OWN_LOSS) for part in type(base).__mro__)


def router_coefficient(model: Any, asked: float | None) -> float:
    """Return the weight of the router's loss: the one that is asked for, or else the model's own; 0
    where there is none.

    Raises: RecipeError when one is asked for and there is none.
    """
    if has_router_loss(model):
        own = getattr(model.config.get_text_config(), KEY, None)
        return float((own or 0.0) if asked is None else asked)
    if asked:
        raise RecipeError(
            f"trainer.{KEY} is {asked:g}, but "
            f"{type(model.config).__name__.removesuffix('Config')} has no loss of its router",
            "drop it",
        )
    return 0.0


def name_experts(model: Any) -> None:
    """Give the configuration the names under which TRL looks for the number of experts and of those
    that a token gets."""
    base = base_under_adapter(model)
    config = base.config.get_text_config()
    for name in ("num_experts", "num_experts_per_tok"):
        if getattr(config, name, None) is None:
            setattr(config, name, getattr(base, name))
