"""A real curve of `aligner rlhf`: does SmolLM2 learn a form that a program checks, and does credit
for each line help?

    python -m benchmarks.real.rlhf MODEL TASKS [--folder DIR] [--seeds N] [--arms A,B] [--write]

MODEL is a folder with a small chat model (the figures in RESULTS.md are of SmolLM2-135M-Instruct),
TASKS rows with an `instruction` (there: the seed tasks of Self-Instruct). The task is that of
`examples/three_lines.py`: a list of three short lines, in words of one's own. Every fifth prompt is
held out. Everything is done by the product's own commands and recipes:

    aligner generate, aligner score   answers of MODEL to the training prompts, and what they earn
    reward/smollm2-135m-lines         a segment reward model on pairs of these answers
    rlhf/smollm2-135m-lines           `sequence`: GRPO on the program's score of whole answers
    rlhf/smollm2-135m-lines-segment   `segment`: GRPO on the reward model's value of each line, and
                                      `mixed`: on both, as `credit: mixed` does

The program scores all answers that training samples, also where it is not what is trained on. `kl`
is what the trainer logs, times the length: nats a response, to the start, with the weights of the
moment. Held-out prompts are answered with the weights at the start, in the middle and at the end.

Minutes of CPU for each arm and seed. `--folder` keeps everything, and continues there when it is
started again: a run that was stopped resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import correlation, fmean
from typing import Any
from unittest.mock import patch

import torch

from aligner.config.load import load_recipe
from aligner.methods.pipeline import run_recipe
from aligner.methods.rlhf import train as rlhf_train
from aligner.methods.rlhf.rollout import Group, Roller
from aligner.runs.api import open_run
from aligner.runs.files import dumps, read_metrics, write_atomically
from benchmarks.real.rlhf_tables import page
from benchmarks.results import write

ROOT = Path(__file__).parents[2]
TASK = ROOT / "examples" / "three_lines.py"
SAMPLES = 4
"""Answers to each training prompt, for the pairs."""
HELD_OUT = "held out"
SEQUENCE, SEGMENT = "rlhf/smollm2-135m-lines", "rlhf/smollm2-135m-lines-segment"
ARMS: dict[str, tuple[str, list[str]]] = {
    "sequence": (SEQUENCE, []),
    "segment": (SEGMENT, []),
    "mixed": (SEGMENT, ["rlhf.credit=mixed", f"rlhf.reward_models=['verifier:{TASK}:share']"]),
}
STEPS = 10
"""Fewer than the recipes', and a little larger ones: a learning rate of 3e-4 in place of 2e-4."""
COMMON = [
    f"trainer.max_steps={STEPS}",
    "trainer.learning_rate=3e-4",
    f"trainer.eval_steps={STEPS // 2}",
    "trainer.eval_on_start=true",
    "trainer.per_device_train_batch_size=3",
    "trainer.per_device_eval_batch_size=24",
    "report.num_prompts=0",
]

Share = Callable[[Any, str, "str | None"], float]


def task() -> Share:
    """The program that scores answers."""
    share: Share = runpy.run_path(str(TASK))["share"]
    return share


# --- what is trained on ---------------------------------------------------------------------------


def aligner(*arguments: object) -> None:
    """Run a command as a user would."""
    line = [sys.executable, "-m", "aligner", *map(str, arguments)]
    subprocess.run(line, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def prepare(model: Path, tasks: Path, folder: Path) -> None:
    """Write prompts, have answers sampled and scored, and train the reward model of lines."""
    if not (folder / "held-out.jsonl").exists():
        subprocess.run([sys.executable, TASK, tasks, folder / "all.jsonl"], check=True)
        lines = (folder / "all.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        trained = [line for place, line in enumerate(lines) if place % 5]
        (folder / "train.jsonl").write_text("".join(trained), encoding="utf-8")
        write_atomically(folder / "held-out.jsonl", "".join(lines[::5]))
    sampled, scored = folder / "sampled.jsonl", folder / "scored.jsonl"
    if not sampled.exists():
        how = ("--num-samples", SAMPLES, "--max-new-tokens", 32, "--temperature", 0.7)
        more = ("--batch-size", 64, "--output", sampled, "--resume")
        aligner("generate", model, "--data", folder / "train.jsonl", *how, *more)
    if not scored.exists():
        scorer = ("--reward-model", f"verifier:{TASK}:share")
        aligner("score", "--data", sampled, *scorer, "--output", scored, "--resume")
    rows = json.dumps([{"path": str(scored), "function": f"{TASK}:pairs"}])
    changes = [f"model.name_or_path={model}", f"data.train={rows}"]
    finish("reward", "reward/smollm2-135m-lines", folder / "reward", changes)


def finish(method: str, recipe: str, run: Path, changes: Sequence[str]) -> None:
    """Run a recipe, from where it was left."""
    if (run / "recipe.yaml").exists() and open_run(run).is_done:
        return
    began = time.process_time()
    resolved = load_recipe(method, recipe, [f"output_dir={run}", *changes])
    run_recipe(resolved, resume=run.exists())
    print(f"{run.name}: {time.process_time() - began:.0f} s of CPU", flush=True)


# --- the arms -------------------------------------------------------------------------------------


def watched(share: Share, file: Path) -> type[Roller]:
    """A roller that writes down what the program says of the answers of each step."""

    class Watched(Roller):
        step: int | str = -1
        trained = 0

        def sample(self, model: Any, rows: Any, step: int | str, **flags: Any) -> list[Group]:
            object.__setattr__(self, "step", step)
            if isinstance(step, int):
                object.__setattr__(self, "trained", step + 1)
            return super().sample(model, rows, step, **flags)

        def score(self, rows: Any, groups: list[Group]) -> None:
            super().score(rows, groups)
            part = {"step": self.step, "trained": self.trained}
            for row, group in zip(rows, groups):
                if row.get("weight", 1.0) > 0 and self.step != "normalizer":
                    with file.open("a", encoding="utf-8") as lines:
                        lines.write(dumps({**part, **_seen(share, group)}) + "\n")

    return Watched


def _seen(share: Share, group: Group) -> dict[str, Any]:
    return {
        "values": [fmean(one.values[end] for end in one.ends) for one in group if one.ends],
        "row": group[0].row,
        "rewards": [share(None, one.text, None) for one in group],
        "lengths": [len(one.token_ids) for one in group],
        "truncated": [not one.is_finished for one in group],
    }


def run_arm(model: Path, folder: Path, arm: str, seed: int) -> None:
    """Train by an arm, unless that is done."""
    recipe, changes = ARMS[arm]
    run = folder / f"{arm}-{seed}"
    changes = [
        f"model.name_or_path={model}",
        f"data.train={folder / 'train.jsonl'}",
        f"data.eval={folder / 'held-out.jsonl'}",
        f"seed={seed}",
        *COMMON,
        *changes,
    ]
    if recipe == SEGMENT:
        changes += [f"rlhf.segment_model={folder / 'reward'}", "rlhf.normalizer_samples=64"]
    roller = watched(task(), folder / f"{arm}-{seed}.jsonl")
    with patch.object(rlhf_train, "Roller", roller):
        finish("rlhf", recipe, run, changes)


def read_arm(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Return what was seen: `steps`, a line for each optimizer step, and `held_out`, a line for
    each evaluation."""
    run = folder / f"{arm}-{seed}"
    text = (folder / f"{arm}-{seed}.jsonl").read_text(encoding="utf-8")
    groups: dict[tuple[Any, int, int], dict[str, Any]] = {}
    for line in text.splitlines():
        one = json.loads(line)
        key = (one["step"], one["trained"], one["row"])
        if one["step"] != HELD_OUT or key not in groups:
            # A step that was repeated after a stop replaces what it left; a process that resumes
            # and evaluates before its first step does not know how many were trained.
            groups[key] = one
    logged = {line["step"]: line for line in read_metrics(run) if "kl" in line}
    trained = sorted({one["step"] for one in groups.values() if one["step"] != HELD_OUT})
    trained = [step for step in trained if step + 1 in logged]  # not one that was broken off
    steps = []
    for step in trained:
        here = [one for one in groups.values() if one["step"] == step]
        found = mean_of(here)
        found["agreement"] = agreement(here)
        line = logged[step + 1]
        found["kl"] = line["kl"] * line["completions/mean_length"]
        steps.append(found)
    asked = [one for one in groups.values() if one["step"] == HELD_OUT]
    held_out = []
    for step in sorted({one["trained"] for one in asked}):
        one = mean_of([one for one in asked if one["trained"] == step])
        held_out.append({"step": step, **one})
    return {"steps": steps, "held_out": held_out}


def agreement(groups: Sequence[dict[str, Any]]) -> float | None:
    """The correlation, within groups, of the reward model's means with the program's scores; None
    without a reward model."""
    values, rewards = [], []
    for group in groups:
        if group["values"]:
            values += [one - fmean(group["values"]) for one in group["values"]]
            rewards += [one - fmean(group["rewards"]) for one in group["rewards"]]
    return correlation(values, rewards) if values and any(values) and any(rewards) else None


def mean_of(groups: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean reward, the length in tokens and the truncated share of groups."""
    every = {
        key: [value for group in groups for value in group[key]]
        for key in ("rewards", "lengths", "truncated")
    }
    return {
        "reward": fmean(every["rewards"]),
        "tokens": fmean(every["lengths"]),
        "truncated": fmean(every["truncated"]),
        "perfect": fmean(reward == 1.0 for reward in every["rewards"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--folder", type=Path, help="keep everything here, and continue")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--read", action="store_true", help="train nothing: read what is there")
    parser.add_argument("--arms", default=",".join(ARMS), help="some of the arms, with commas")
    parser.add_argument(
        "--write", action="store_true", help="write the tables into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    arms = options.arms.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if not options.read:
            prepare(options.model.resolve(), options.tasks.resolve(), folder)
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for seed in range(options.seeds):
            for arm in arms:
                if not options.read:
                    run_arm(options.model.resolve(), folder, arm, seed)
                if (folder / f"{arm}-{seed}.jsonl").exists():
                    found[arm].append(read_arm(folder, arm, seed))
                    print(page(found), flush=True)
    if options.write:
        write("real-rlhf", page(found))


if __name__ == "__main__":
    main()
