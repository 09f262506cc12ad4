"""Runs that sample responses, and a look at what they train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import small_recipe
from safetensors.torch import load_file

from aligner.errors import RecipeError
from aligner.methods.pipeline import run_recipe
from aligner.methods.rlhf.trainer import RlhfTrainer
from aligner.runs.files import read_metrics


def train(
    world: Path, folder: Path, *overrides: str, resume: bool = False, **flags: Any
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The log of a run, and the events that it sent."""
    events: list[Any] = []
    recipe = small_recipe("rlhf", world, folder, *overrides, **flags)
    run_recipe(recipe, resume=resume, on_event=events.append)
    return read_metrics(folder), events


def trained(log: list[dict[str, Any]], key: str) -> list[float]:
    return [line[key] for line in log if line["split"] == "train" and key in line]


def refusal(world: Path, folder: Path, *overrides: str) -> str:
    """What a recipe that is refused is told: keys, messages and hints."""
    with pytest.raises(RecipeError) as caught:
        small_recipe("rlhf", world, folder, *overrides)
    problems = " ".join(f"{one.key} {one.message} {one.hint}" for one in caught.value.problems)
    return f"{caught.value} {problems}"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "final").glob("*.safetensors")))


def largest_difference(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert set(first) == set(second)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


class Spy:
    """Keeps the batches of each step, and the groups that they are made of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[dict[str, Any]] = []
        self.groups: list[list[Any]] = []
        self.trainers: list[Any] = []
        fetch = RlhfTrainer.get_batch_samples

        def spy(trainer: Any, *arguments: Any) -> Any:
            found = fetch(trainer, *arguments)
            self.batches += found[0]
            self.groups.append(trainer.groups)
            self.trainers.append(trainer)
            return found

        monkeypatch.setattr(RlhfTrainer, "get_batch_samples", spy)
