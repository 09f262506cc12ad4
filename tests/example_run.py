"""A run directory such as training leaves behind, made in a moment: for the tests of the record and
the report.

python tests/example_run.py FOLDER      writes FOLDER/runs/sft and FOLDER/runs/dpo with their
                                        reports
"""

from __future__ import annotations

import math
import os
import random
import sys
from pathlib import Path
from typing import Any

from aligner.config.load import Resolved
from aligner.data.ledger import FileRecord, Ledger
from aligner.methods.catalogue import method_of
from aligner.reports.finish import finish_run
from aligner.runs.run import Run

RECIPE_TEXT = """# DPO on the toy world: about a minute on two cores
method: {method}
output_dir: {output_dir}
model:
  name_or_path: {model}
data:
  train: {data}
  eval: 0.05
  max_length: 256
trainer:
  learning_rate: 5.0e-5
  max_steps: 240
"""


def resolved(
    output_dir: str | Path, method: str = "sft", model: str = "model", **changes: Any
) -> Resolved:
    """A resolved recipe as `load_recipe` gives it, with keys changed at the top level."""
    data = {"sft": "sft.jsonl", "dpo": "preferences.jsonl"}[method]
    text = RECIPE_TEXT.format(method=method, output_dir=output_dir, model=model, data=data)
    recipe = {
        "method": method,
        "output_dir": str(output_dir),
        "model": {"name_or_path": model},
        "data": {"train": data, "eval": 0.05, "max_length": 256},
        "trainer": {"learning_rate": 5e-5, "max_steps": 240},
        **changes,
    }
    origins = {
        "output_dir": "recipe.yaml:3",
        "model.name_or_path": "recipe.yaml:5",
        "trainer.learning_rate": "-o lr",
    }
    return Resolved(
        recipe=method_of(method).recipe.model_validate(recipe),
        origins=origins,
        text=text,
        path=None,
    )


def ledger(path: str) -> Ledger:
    """Balanced books with every kind of loss."""
    books = Ledger()
    source = books.source(path)
    source.files = [FileRecord(path, "5f0c" * 16, 412_345)]
    source.format, source.evidence = "messages", "a `messages` column in all rows"
    source.rows_read, source.duplicates, source.not_sampled = 4_200, 58, 140
    source.note_bad(f"{path}:17", "the last message has no content")
    source.to_eval, source.to_train = 200, 4_200 - 58 - 140 - 1 - 200
    train, held_out = books.split("train"), books.split("eval")
    train.rows_in, held_out.rows_in = source.to_train, source.to_eval
    train.count(
        rows=3_789,
        too_long_dropped=12,
        tokens=201_345,
        trained_tokens=88_120,
        masked_tokens=113_225,
    )
    train.count(truncated_rows=0, lengths=[18, 41, 52, 70, 201], sequences=790, packed_fill=0.987)
    held_out.count(
        rows=200, tokens=10_600, trained_tokens=4_600, masked_tokens=6_000, padding_share=0.083
    )
    books.check()
    return books


def log_training(run: Run, steps: int = 240) -> None:
    """Curves with noise, a held-out point every 40 steps and, for DPO, the rewards."""
    noise = random.Random(run.dir.name)
    preference = run.read_json("resolved.json")["recipe"]["method"] == "dpo"
    for step in range(1, steps + 1):
        run.log_metrics(record(step, steps, "train", preference, noise))
        if step % 40 == 0:
            run.log_metrics(record(step, steps, "eval", preference, noise))


def record(
    step: int, steps: int, split: str, preference: bool, noise: random.Random
) -> dict[str, Any]:
    share, jitter = step / steps, noise.gauss(0, 0.04 if split == "train" else 0.004)
    line: dict[str, Any] = {
        "step": step,
        "epoch": round(share, 4),
        "split": split,
        "time_s": round(step * 0.21, 2),
    }
    if split == "train":
        warm = min(1.0, step / 20) * 0.5 * (1 + math.cos(math.pi * share))
        line |= {
            "learning_rate": 5e-5 * warm,
            "grad_norm": 1.1 + math.exp(-4 * share) + abs(jitter) * 6,
        }
    if preference:
        chosen, rejected = 0.4 * share + jitter, -1.3 * share - jitter
        line |= {"loss": 0.693 * math.exp(-1.2 * share) + jitter, "rewards/chosen": chosen}
        line |= {"rewards/rejected": rejected, "rewards/margins": chosen - rejected}
        line |= {
            "rewards/accuracies": min(
                1.0, max(0.0, 0.5 + 0.42 * (1 - math.exp(-4 * share)) + jitter * 2)
            )
        }
        line |= {
            "logps/chosen": -20 + 4 * chosen,
            "logps/rejected": -21 + 9 * rejected,
            "logits/chosen": 1.2 + jitter,
        }
    else:
        line |= {
            "loss": 0.35 + 1.9 * math.exp(-5 * share) + jitter,
            "entropy": 0.4 + math.exp(-4 * share),
        }
        line |= {
            "mean_token_accuracy": 0.93 - 0.6 * math.exp(-5 * share) + jitter / 3,
            "num_tokens": step * 850,
        }
    return line


SAMPLES = [
    {"prompt": "sort: 7 3 9 1", "before": "1 3 3 9", "after": "1 3 7 9", "expected": "1 3 7 9"},
    {
        "prompt": "reverse: a b c d e",
        "before": "e d c b a",
        "after": "e d c b a",
        "expected": "e d c b a",
    },
    {
        "prompt": "count: how many b in `abcbbad`?",
        "before": "",
        "after": "There are 3.\nb, b, b",
        "expected": "3",
    },
]


def trained_run(
    output_dir: Path, method: str = "sft", model: str = "model", steps: int = 240
) -> Run:
    """A run up to the moment before `finish`."""
    run = Run.create(resolved(output_dir, method, model))
    run.record_devices({"accelerator": "cpu", "threads": 2})
    source = {"sft": "sft.jsonl", "dpo": "preferences.jsonl"}[method]
    run.check_data("d" * 64, {source: "5f0c" * 16})
    run.write_json("data.json", ledger(source).to_json())
    log_training(run, steps)
    run.write_json("samples.json", SAMPLES)
    run.final_dir.mkdir()
    (run.final_dir / "model.safetensors").write_bytes(os.urandom(40_000))
    (run.final_dir / "config.json").write_text('{"model_type": "llama"}\n')
    return run


def finished_run(
    output_dir: Path, method: str = "sft", model: str = "model", steps: int = 240
) -> Run:
    """The whole of it."""
    run = trained_run(output_dir, method, model, steps)
    scores = [("base", 0.41, 0.38), ("SFT", 0.63, 0.59), ("DPO", 0.78, 0.74)][
        : 2 if method == "sft" else 3
    ]
    metrics = [
        {"name": name, "metrics": {"gold_score": gold, "exact": exact}}
        for name, gold, exact in scores
    ]
    run.write_json("evaluation.json", metrics)
    parents = [{"kind": "model", "path": model, "fingerprint": None}]
    results = {"train_loss": 0.4123, "eval_loss": 0.3567, "eval_rewards/accuracies": 0.912}
    finish_run(run, results, parents)
    return run


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    finished_run(Path("runs/sft"))
    finished_run(Path("runs/dpo"), "dpo", "runs/sft/final")
