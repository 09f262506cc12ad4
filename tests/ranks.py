"""Trainings in several processes, each started as a user would, and what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import save_model, write_jsonl
from safetensors.torch import load_file

RECIPE = """\
output_dir: run
model: {{name_or_path: model{lora}}}
data: {{train: {data}, max_length: 256}}
trainer:
  {{learning_rate: 0.01, num_train_epochs: 1, per_device_train_batch_size: 8, logging_steps: 1,
    lr_scheduler_type: constant}}
report: {{num_prompts: 0}}
"""
DATA = {"sft": "talks.jsonl", "dpo": "pairs.jsonl", "sapo": "talks.jsonl", "reward": "pairs.jsonl"}
DATA["rlhf"] = "talks.jsonl"
LORA = ", lora: {r: 4}"


def save_world(folder: Path) -> Path:
    """Write a model, 16 talks and 16 pairs; return the folder."""
    save_model(folder / "model")
    numbers = [" ".join(map(str, range(n))) for n in range(1, 17)]
    write_jsonl(
        folder / "talks.jsonl", ({"prompt": f"count to {len(n)}", "completion": n} for n in numbers)
    )
    pairs = (
        {"prompt": f"count to {len(n)}", "chosen": n, "rejected": "no " * (i + 1)}
        for i, n in enumerate(numbers)
    )
    write_jsonl(folder / "pairs.jsonl", pairs)
    return folder


def train(
    folder: Path,
    method: str,
    output: str,
    *arguments: str,
    lora: str = "",
    launcher: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own and return it, with what it printed."""
    recipe = folder / f"{method}{len(lora)}.yaml"
    recipe.write_text(RECIPE.format(data=DATA[method], lora=lora), encoding="utf-8")
    command = [
        sys.executable,
        *(launcher or ("-m", "aligner")),
        method,
        recipe.name,
        f"output_dir={output}",
        *arguments,
    ]
    alone = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU")
    }
    done = subprocess.run(
        command, cwd=folder, env=alone, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def weights(folder: Path, output: str) -> dict[str, torch.Tensor]:
    """Return what a run saved."""
    return load_file(next((folder / output / "final").glob("*.safetensors")))


def losses(folder: Path, output: str) -> list[float]:
    """Return the losses that a run logged."""
    lines = map(
        json.loads, (folder / output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    )
    return [line["loss"] for line in lines]


def assert_same(folder: Path, one: str, other: str) -> None:
    """Fail unless two runs have the same losses and weights, but for rounding."""
    assert losses(folder, one) == pytest.approx(losses(folder, other), abs=1e-5)
    left, right = weights(folder, one), weights(folder, other)
    assert left.keys() == right.keys()
    # Adam at this rate turns rounding into a thousandth of a step.
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 3e-5


HALVED = ("trainer.per_device_train_batch_size=4", "--num-processes", "2")
"""Two processes with the global batch that one has."""
