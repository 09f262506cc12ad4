"""The data type that weights are loaded in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.config.recipe import Model
from aligner.launch.devices import has_bf16_gpu

if TYPE_CHECKING:
    import torch


def resolve_dtype(model: Model, trainable: bool) -> torch.dtype:
    """Return the data type of the weights; `auto` is bfloat16 where weights are frozen on a GPU
    that has it."""
    import torch

    if model.dtype != "auto":
        return getattr(torch, model.dtype)
    frozen = model.lora is not None or not trainable
    return torch.bfloat16 if frozen and has_bf16_gpu() else torch.float32
