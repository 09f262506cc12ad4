"""A small flywheel in the toy world: one round against scripted experts, with a test set of a
few prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from aligner.config.load import Resolved, load_recipe

TRAINER = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "save_steps": 1,
    "learning_rate": 1e-3,
    "logging_steps": 1,
}
EXPERTS = ("strong", "middling", "weak")


def write_flywheel_world(folder: Path, toy_world: Path) -> Path:
    """A folder with the model, the prompts and the experts of a toy world, and a test set."""
    from aligner.arena.testset.frozen import ITEMS, freeze
    from aligner.runs.files import write_parts_atomically

    shutil.copytree(toy_world / "model", folder / "model")
    for name in ("prompts", "sft", *(f"experts-{name}" for name in EXPERTS)):
        shutil.copy(toy_world / f"{name}.jsonl", folder)
    rows = []
    with (toy_world / "heldout.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number < 12:
                part = {"prompt_id": f"t{number}", "split": "dev" if number % 2 else "test"}
                rows.append({**json.loads(line), **part, "subset": "diverse"})
    (folder / "testset").mkdir()
    lines = freeze(folder / "testset", rows, {}, {})
    write_parts_atomically(folder / "testset" / ITEMS, lines)
    return folder


def flywheel_recipe(world: Path, folder: Path, *overrides: str, **flags: Any) -> Resolved:
    """The recipe of one round. `flags`: dotted keys with `__` for the dot."""
    opponents = [
        {"name": name, "answers": str(world / f"experts-{name}.jsonl")} for name in EXPERTS
    ]
    settings = {
        "model.name_or_path": str(world / "model"),
        "data.train": str(world / "prompts.jsonl"),
        "data.max_length": 128,
        "output_dir": str(folder),
        "flywheel.rounds": 1,
        "flywheel.prompts_per_battle": 6,
        "flywheel.opponents": opponents,
        "flywheel.judges": [{"scorer": "toy", "name": "judge", "faults": {"noise": 0.1}}],
        "flywheel.test_set": str(world / "testset"),
        "flywheel.max_new_tokens": 12,
        "flywheel.temperature": 0.7,
        "flywheel.batch_size": 8,
        "flywheel.noise_prompts": 4,
        "flywheel.rating.resamples": 50,
        "flywheel.stop.min_rows": 1,
        "flywheel.stop.noise": False,
        "flywheel.stop.gain": False,
        "trainings.sft": {"trainer": TRAINER},
        "trainings.dpo": {"trainer": TRAINER},
        "trainings.reward": {"trainer": TRAINER},
        "trainings.rlhf": {
            "rlhf": {"group_size": 4, "max_new_tokens": 8},
            "trainer": {**TRAINER, "max_steps": 1},
        },
        **{key.replace("__", "."): value for key, value in flags.items()},
    }
    strategies = settings.get("flywheel.strategies", ["sft", "dpo", "rl"])
    unused = {"sft": ["sft"], "dpo": ["dpo"], "rl": ["reward", "rlhf"]}
    for strategy in set(unused) - set(strategies):
        for method in unused[strategy]:
            settings.pop(f"trainings.{method}", None)
    given = {override.split("=", 1)[0] for override in overrides}
    kept = {key: value for key, value in settings.items() if key not in given}
    return load_recipe("flywheel", None, overrides, kept)
