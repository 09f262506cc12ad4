"""Train with a loss of your own, on pairs that are in no file.

    aligner toy toy
    python examples/custom_loss.py toy      # about half a minute on a CPU

The loss is squared: the margin z = beta * rho of a pair is pulled to a target instead of being
raised for ever. What the run records of it is its name and a digest of its source.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aligner
from aligner.cli.render import Screen

if TYPE_CHECKING:
    from torch import Tensor

    from aligner.losses.types import PairLogps, Settings

TARGET = 1.0


def squared(pairs: PairLogps, settings: Settings) -> Tensor:
    """Losses (N,) of N pairs: (z - TARGET)^2."""
    return (settings.beta * pairs.rho - TARGET) ** 2


def pairs_of(file: Path) -> list[dict[str, Any]]:
    """Pairs as a list of dicts, those alone whose better answer is the longer one."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if length(row["chosen"]) >= length(row["rejected"])]


def length(answer: list[dict[str, str]]) -> int:
    """Characters of an answer."""
    return sum(len(turn["content"]) for turn in answer)


def main(world: Path, output_dir: Path, steps: int = 60) -> float:
    """Train the toy model, and return the share of pairs that it ranks rightly at the end."""
    overrides = {
        "model.name_or_path": world / "model",
        "output_dir": output_dir,
        "data.max_length": 256,
        "trainer.learning_rate": 1e-3,
        "trainer.per_device_train_batch_size": 16,
        "trainer.max_steps": steps,
        "trainer.logging_steps": 1,
    }
    rows = pairs_of(world / "preferences.jsonl")
    with Screen() as screen:
        outcome = aligner.train(
            "dpo",
            rows=rows,
            objective=squared,
            overrides=overrides,
            on_event=screen.on_event,
            overwrite=True,
        )
    last = aligner.open_run(outcome.run_dir).metrics[-1]
    print(f"loss {last['loss']:.3f}, pairs ranked rightly {last['rewards/accuracies']:.2f}")
    return float(last["rewards/accuracies"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path("runs/custom-loss"))
