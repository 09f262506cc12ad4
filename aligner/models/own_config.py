"""A model's own configuration, kept apart from what a trainer writes into it.

Trainers of TRL and transformers set things in `model.config` and `model.generation_config` that
they need while they train: router logits are returned, no cache is filled, ids of tokens follow the
tokenizer. None of that belongs to the model. So `OwnConfig` remembers what was there before the
trainer was made. It is put back before anything is answered or saved.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from aligner.models.adapter_kinds import base_under_adapter

ROUTER_LOGITS = "output_router_logits"


class OwnConfig:
    """What the configurations of a model hold at the moment, to be put back later.

    The objects stay the ones that they are, since the parts of a model refer to them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.kept = [(config, copy.deepcopy(vars(config))) for config in configs_of(model)]

    def put_back(self) -> None:
        """Undo every change since this was made."""
        for config, values in self.kept:
            vars(config).clear()
            vars(config).update(copy.deepcopy(values))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Undo the changes for a while, as for a checkpoint that is written while training goes
        on."""
        now = OwnConfig(self.model)
        self.put_back()
        try:
            yield
        finally:
            now.put_back()


def configs_of(model: torch.nn.Module) -> list[Any]:
    """Return a model's configuration, those nested in it, and its generation config; of a PEFT
    model those of its base."""
    base = base_under_adapter(model)
    found: list[Any] = []
    waiting = [getattr(base, "config", None), getattr(base, "generation_config", None)]
    while waiting:
        config = waiting.pop()
        if config is None or any(config is other for other in found):
            continue
        found.append(config)
        waiting += [
            value
            for value in vars(config).values()
            if hasattr(value, "to_dict") and hasattr(value, "save_pretrained")
        ]
    return found


def forget_router_logits(model: torch.nn.Module) -> None:
    """Let no forward pass return router logits unless it is asked: with a cache, or padding on the
    left, it would fail."""
    for config in configs_of(model):
        if getattr(config, ROUTER_LOGITS, False):
            setattr(config, ROUTER_LOGITS, False)


@contextmanager
def without_router_logits(model: torch.nn.Module) -> Iterator[None]:
    """The same for a while."""
    asked = [config for config in configs_of(model) if getattr(config, ROUTER_LOGITS, False)]
    for config in asked:
        setattr(config, ROUTER_LOGITS, False)
    try:
        yield
    finally:
        for config in asked:
            setattr(config, ROUTER_LOGITS, True)
