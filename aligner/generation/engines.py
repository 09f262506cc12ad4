"""The engines of generation by name. Each is a class of a module of its own, imported when it is
asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from aligner.generation.requests import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENGINES = {"hf": ("aligner.generation.hf", "HfEngine")}
"""Name -> (module, class)."""


def engine_for(model: PreTrainedModel, *, name: str = "hf", batch_size: int = 16) -> Engine:
    """Return the engine of a name, around a loaded model. `batch_size`: how many rows it decodes at
    a time, at most."""
    module, cls = ENGINES[name]
    engine: Engine = getattr(import_module(module), cls)(model, batch_size=batch_size)
    return engine
