"""The engines that decode with a loaded model, by name. Each is a class of a module of its own,
imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from aligner.generation.requests import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD = {
    "auto": ("aligner.generation.hf", "HfEngine"),
    "hf": ("aligner.generation.hf", "HfEngine"),
    "hf_cb": ("aligner.generation.hf_cb", "HfCbEngine"),
}
"""Engines that decode with a loaded model: name -> (module, class). Those that have weights of
their own are made by `aligner.generation.writers`."""


def engine_for(model: PreTrainedModel, *, name: str = "hf", batch_size: int = 16) -> Engine:
    """Return the engine of a name, around a loaded model. `batch_size`: how many rows it decodes at
    a time, at most."""
    module, cls = HELD[name]
    engine: Engine = getattr(import_module(module), cls)(model, batch_size=batch_size)
    return engine
