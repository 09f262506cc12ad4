"""The table of training methods: the folder of each, and what the pipeline must know before it
imports one. No torch.

A method's folder holds `encode.py`, whose `encoder(recipe, tokenizer)` turns a row into columns,
and `train.py`, whose `train(job)` trains, saves, and returns `Fitted`.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from aligner.data.rows import Task

METHODS: dict[str, str] = {
    "sft": "aligner.methods.sft",
    "dpo": "aligner.methods.dpo",
    "sapo": "aligner.methods.sapo",
    "reward": "aligner.methods.reward",
}
"""Method name -> its folder."""

TASKS: dict[str, Task] = {"sft": "sft", "dpo": "preference", "sapo": "sft", "reward": "preference"}
"""Method name -> the kind of rows that it trains on; `aligner.methods.pipeline.task_of` knows the
exceptions."""


def part_of(method: str, part: str) -> ModuleType:
    """Import a part of a method: `encode` or `train`."""
    return import_module(f"{METHODS[method]}.{part}")
